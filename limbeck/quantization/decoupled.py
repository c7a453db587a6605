"""decoupleQ: whole numbers and real numbers of a quantized weight found in turn, each as the optimum given the other.

    min over q, s, o of  tr((s q + o - W) H (s q + o - W)^T)       row by row, s and o one per group

Start: min-max, rounded to the nearest or by GPTQ, whichever costs a row less. Then, at most `rounds` times,

    (a) s, o fixed: q by GPTQ on the grid that they span
    (b) q fixed: s and o from the normal equations of all groups of a row together (float64)

and each result is kept for the rows whose error it lowers, so the error never rises. Before the first (a), s and o are also fitted to
codes that were rounded to the nearest, twice in turn. At the end of a block, its codes stay and s, o and the parameters of norms are
trained on the block's output (`epochs` passes over the calibration batches), and are kept where that lowered the block's error.

Source: Guo et al., "decoupleQ", 2024, sections 3.2 to 3.4, and the authors' public code, which adds the choice per row. Of the paper's two
approximations of (a) this is the second, GPTQ; the first takes projected gradient steps on the free columns within the box of codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.quantization.adaptive_rounding import check_training
from limbeck.quantization.affine_form import AffineForm
from limbeck.quantization.contract import Packed
from limbeck.quantization.gptq import gptq
from limbeck.quantization.granularity import PerChannel, PerGroup
from limbeck.quantization.grids import Quantizer
from limbeck.quantization.hessian import as_parameter, damped, output_error
from limbeck.quantization.reconstruction import block_error, block_outputs, inside, reconstruct
from limbeck.quantization.rounding import LayerRounding
from limbeck.quantization.streaming import Segment


def fitted(weight: Tensor, codes: Tensor, hessian: Tensor, form: AffineForm) -> AffineForm:
    """The form with the scales, and where they can be stored the offsets, of least output error for these codes.

    weight, codes (out, n); hessian (n, n). Rows are independent; the groups of a row are solved together, 2 G x 2 G normal equations in
    float64, with a ridge of 1e-9 of their trace, because a group whose codes are all alike leaves scale or offset free. Scales that come
    out at or below 0 stay as they were.
    """
    rows, columns = weight.shape
    size = form.quantizer.granularity.size if isinstance(form.quantizer.granularity, PerGroup) else columns
    missing = -columns % size
    target, q = (nn.functional.pad(t.double(), (0, missing)) for t in (weight, codes))
    h = nn.functional.pad(hessian.double(), (0, missing, 0, missing))
    groups = (columns + missing) // size
    if not form.fits_offset:  # offsets are multiples of the scale: s (q - z)
        zero = form.zero_point.double().reshape(rows, groups).repeat_interleave(size, 1)
        q = q - zero
    cut = q.unflatten(1, (groups, size))
    product = torch.einsum("rgi,gin->rgn", cut, h.unflatten(0, (groups, size)))  # (Q^T H), (out, G, n)
    qq = (product * q.unsqueeze(1)).unflatten(2, (groups, size)).sum(3)
    right = (product @ target.unsqueeze(2)).squeeze(2)
    if form.fits_offset:
        ones = h.unflatten(0, (groups, size)).sum(1)  # (1^T H), (G, n); of padded columns it is 0
        qo = product.unflatten(2, (groups, size)).sum(3)
        oo = ones.unflatten(1, (groups, size)).sum(2).expand(rows, groups, groups)
        qq = torch.cat([torch.cat([qq, qo], 2), torch.cat([qo.transpose(1, 2), oo], 2)], 1)
        right = torch.cat([right, target @ ones.t()], 1)
    ridge = 1e-9 * qq.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)
    solution = torch.linalg.solve(
        qq + ridge[:, None, None] * torch.eye(qq.shape[1], dtype=qq.dtype, device=qq.device), right
    )
    scale = solution[:, :groups].float().reshape(form.scale.shape)
    sound = torch.isfinite(scale) & (scale > 0)
    scale = torch.where(sound, scale, form.scale)
    offset = form.offset
    if form.fits_offset:
        found = solution[:, groups:].float().reshape(form.offset.shape)
        offset = torch.where(sound & torch.isfinite(found), found, form.offset)
    return form.with_parameters(scale, offset)


def choose(better: Tensor, new: AffineForm, old: AffineForm) -> AffineForm:
    """The parameters of `new` in the rows where better (out,), else those of `old`."""
    wide = better.reshape(-1, *[1] * (new.scale.dim() - 1))
    return replace(old, scale=torch.where(wide, new.scale, old.scale), offset=torch.where(wide, new.offset, old.offset))


def decoupled(
    weight: Tensor, hessian: Tensor, form: AffineForm, rounds: int = 3, damping: float = 0.01
) -> tuple[Tensor, AffineForm, list[Tensor]]:
    """Codes (out, n), the form with the fitted parameters, and the errors of the rows after every step, which never rise.

    weight (out, n); hessian (n, n), damped here as in GPTQ.
    """
    h = damped(hessian, damping)

    def error(codes: Tensor, form: AffineForm) -> Tensor:
        return output_error(form.values(codes) - weight, h[None])

    def gptq_codes(form: AffineForm) -> Tensor:
        second = form.offset if form.fits_offset else form.zero_point
        return gptq(weight, hessian, form.quantizer, damping, parameters=(form.scale, second))[0].to(weight.dtype)

    codes = form.nearest(weight)
    least = error(codes, form)
    history = [least]

    def keep(new_codes: Tensor, new_form: AffineForm) -> bool:
        nonlocal codes, form, least
        found = error(new_codes, new_form)
        better = found < least
        codes, form = torch.where(better[:, None], new_codes, codes), choose(better, new_form, form)
        least = torch.where(better, found, least)
        history.append(least)
        return bool(better.any())

    keep(gptq_codes(form), form)
    trial = form
    for _ in range(2):
        trial = fitted(weight, trial.nearest(weight), h, trial)
    for _ in range(rounds):
        first = keep(gptq_codes(trial), trial)
        second = keep(codes, fitted(weight, codes, h, form))
        if not first and not second:
            break
        trial = form
    return codes, form, history


@dataclass(frozen=True)
class DecoupleQ(LayerRounding):
    """decoupleQ; see the module. `Quantize(bits=2, weights=64, grid="affine", activations=None, rounding="decoupleq")`

    rounds, damping    of the alternation
    epochs             passes over the calibration batches that train s, o and norms on each block's output; 0: none
    learning_rate      of that training, of s and o as they are: what is right at 2 bits is too much where scales are smaller, about a quarter
                       of it for each further bit; norms: whether the weights and biases of normalizations are trained with it

    On symmetric and integer grids only scales are fitted. Raises UsageError for settings out of range, grids that are neither integer nor
    affine, and one scale per tensor.
    """

    rounds: int = 3
    damping: float = 0.01
    epochs: int = 2
    learning_rate: float = 1e-4
    norms: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_training(max(1, self.epochs) if type(self.epochs) is int else self.epochs, self.learning_rate, 0.0)
        if type(self.rounds) is not int or self.rounds < 0 or type(self.epochs) is not int or self.epochs < 0:
            raise UsageError(f"rounds={self.rounds!r}, epochs={self.epochs!r}: must be whole numbers of at least 0")
        if not 0 < self.damping < float("inf"):
            raise UsageError(f"damping={self.damping!r}: must be above 0; 0.01 is usual")

    def layer(self, weight: Tensor, hessian: Tensor, quantizer: Quantizer) -> Packed:
        if quantizer.granularity != PerChannel(0) and not isinstance(quantizer.granularity, PerGroup):
            raise UsageError(f"DecoupleQ fits scales per channel or per group, not {quantizer.granularity}")
        parts = []
        for rows, h in zip(weight.chunk(len(hessian)), hessian):
            codes, form, _ = decoupled(rows, h, AffineForm.of(rows, quantizer, "DecoupleQ"), self.rounds, self.damping)
            parts.append((codes, form.scale, form.offset))
        codes, scale, offset = (torch.cat(entries) for entries in zip(*parts))
        return AffineForm(quantizer, tuple(weight.shape), scale, offset, form.low, form.high).pack(codes)

    def solve(self, segment: Segment, quantizers: Mapping[str, Quantizer]) -> dict[str, Packed]:
        if segment.path is None or not self.epochs:
            return super().solve(segment, quantizers)
        targets = block_outputs(segment)  # of the block as it was, on the inputs it has now
        found = super().solve(segment, quantizers)
        forms, codes, trained = {}, {}, []
        for path, packed in found.items():
            codes[path] = quantizers[path].codes(packed).to(torch.float32)
            forms[path] = unpacked(packed, quantizers[path])
            trained.append(forms[path].scale.requires_grad_(True))
            if forms[path].fits_offset:
                trained.append(forms[path].offset.requires_grad_(True))
        norms = norm_parameters(segment.block) if self.norms else {}
        leaves = {name: value.detach().clone().requires_grad_(True) for name, value in norms.items()}

        def weights(forms: Mapping[str, AffineForm]) -> dict[str, Tensor]:
            return {
                inside(segment, p): as_parameter(segment.module(p), trainable(f, codes[p])) for p, f in forms.items()
            }

        steps = self.epochs * len(segment.calls)
        rest = [{"params": trained + list(leaves.values()), "lr": self.learning_rate}]
        before = block_error(segment, targets, weights(forms) | leaves)
        reconstruct(segment, targets, lambda: weights(forms) | leaves, rest, steps, seed=self.seed)
        if not block_error(segment, targets, weights(forms) | leaves) < before:
            return found
        for path, form in forms.items():
            scale = torch.where(form.scale > 0, form.scale, unpacked(found[path], quantizers[path]).scale).detach()
            final = form.with_parameters(scale, form.offset.detach())
            found[path] = final.pack(codes[path])
            segment.write(path, quantizers[path].decode(found[path]))
        for name, value in leaves.items():
            segment.change(name, value.detach())
        return found


def unpacked(packed: Packed, quantizer: Quantizer) -> AffineForm:
    """The affine form of a stored weight, on tensors of its own."""
    scale, shape = packed.scale.float().clone(), (packed.shape[0], packed.shape[1])
    if hasattr(quantizer.grid, "of_range"):
        return AffineForm(quantizer, shape, scale, packed.zero_point.float().clone(), 0, quantizer.grid.high)
    zero = quantizer.grid.center if packed.zero_point is None else packed.zero_point.float()
    return AffineForm(quantizer, shape, scale, -scale * zero, quantizer.grid.low, quantizer.grid.high)


def trainable(form: AffineForm, codes: Tensor) -> Tensor:
    """The weight as a function of scale and offset; where offsets are multiples of the scale they follow it."""
    if form.fits_offset:
        return form.values(codes)
    zero = torch.round(-form.offset / form.scale.detach())
    return replace(form, offset=-form.scale * zero).values(codes)


def norm_parameters(block: nn.Module) -> dict[str, nn.Parameter]:
    """Weights and biases of the normalizations in a block, by name."""
    return {
        f"{path}.{name}": parameter
        for path, module in block.named_modules()
        if "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False)
    }
