"""Codebooks for groups of neurons, learned jointly with which codeword each weight has.

    W~_ij = sum_k p_ijk c_k,    p = softmax(A_ij / T),    c the codebook of row i's group,    loss = output error of the layer

A begins where the two codewords around a weight mix to the weight; T falls geometrically, and in the end each weight has its likeliest codeword.
The gradient of an entry of A at T = 1, g that of W~ and i the likeliest codeword, is

    dL / dA_k = g p_k (u_k - sum_m p_m u_m),    u_k = c_k - c_i

The farther a codeword, the larger, so that weights jump to the outermost ones. The proximal gradient lets a distance count the less the larger it is,
so that codewords nearby are tried first:

    u_k = sign(c_k - c_i) f(|c_k - c_i|), u_i = 0,    f(d) = delta / (1 + d / delta),    delta: the mean distance of neighbouring codewords

Codebooks shared by runs of rows cost nothing to address (`PerRows`); `OrderNeurons` puts neurons of similar size side by side before, a permutation that
the layers which read them absorb.

Source: Yvinec et al., "Network Memory Footprint Compression Through Jointly Learnable Codebooks and Mappings", ICLR 2024, from its abstract and its public
reviews; no code. That f falls with the distance is the paper's; its form, the softmax and T are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.quantization.adaptive_rounding import check_training
from limbeck.quantization.codebooks import CodebookGrid
from limbeck.quantization.contract import SCALE_TYPES, Packed
from limbeck.quantization.granularity import from_rows, rows
from limbeck.quantization.grids import Quantizer
from limbeck.quantization.hessian import output_error
from limbeck.quantization.packing import pack_bits
from limbeck.quantization.rounding import LayerRounding


class _Mixture(torch.autograd.Function):
    """sum_k softmax(A)_k c_k with the proximal gradient to A; that to c is exact. A (books, n, K), c (books, K), delta (books, 1)."""

    @staticmethod
    def forward(ctx, logits, book, delta):
        share = torch.softmax(logits, -1)
        mixed = (share * book.unsqueeze(1)).sum(-1)
        ctx.save_for_backward(share, book, delta)
        return mixed

    @staticmethod
    def backward(ctx, gradient):
        share, book, delta = ctx.saved_tensors
        apart = book.unsqueeze(1) - book.gather(1, share.argmax(-1)).unsqueeze(-1)
        near = apart.sign() * delta.unsqueeze(-1) / (1 + apart.abs() / delta.unsqueeze(-1))
        near = share * (near - (share * near).sum(-1, keepdim=True))
        return gradient.unsqueeze(-1) * near, (gradient.unsqueeze(-1) * share).sum(1), None


def mixture(logits: Tensor, book: Tensor, proximal: bool) -> Tensor:
    """Weights that are mixtures of codewords: logits (books, n, K), book (books, K) -> (books, n). proximal: the gradient to the logits
    that is told above, not the exact one."""
    if not proximal:
        return (torch.softmax(logits, -1) * book.unsqueeze(1)).sum(-1)
    rising = book.detach().sort(1).values
    delta = ((rising[:, -1:] - rising[:, :1]) / max(1, book.shape[1] - 1)).clamp(min=torch.finfo(torch.float32).tiny)
    return _Mixture.apply(logits, book, delta)


def first_logits(elements: Tensor, book: Tensor, least: float = 1e-2) -> Tensor:
    """log p, p the shares with which the codewords around an element mix to it, none below `least`: elements (books, n), rising book (books, K)."""
    count = book.shape[1]
    above = torch.searchsorted(book, elements.contiguous()).clamp(1, count - 1)
    low, high = book.gather(1, above - 1), book.gather(1, above)
    part = ((elements - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)).clamp(0, 1)
    share = torch.zeros(*elements.shape, count, device=elements.device)
    share.scatter_(2, (above - 1).unsqueeze(2), (1 - part).unsqueeze(2)).scatter_(
        2, above.unsqueeze(2), part.unsqueeze(2)
    )
    return share.clamp(min=least).log()


@dataclass(frozen=True)
class JointCodebooks(LayerRounding):
    """Learned codebooks and mappings, layer by layer, on the output error of `AdaRound`; see the module. For codebooks of numbers (grid="kmeans").

    iterations: of both. mapping_rate: of the logits, which take steps of gradient / its root mean square, with momentum 0.9; book_rate: of Adam on
    codewords, in mean distances of neighbours. proximal: which gradient logits have. temperature: the last T; the first is 1.
    A layer that has won nothing against k-means keeps that. Raises UsageError for settings out of range, and for other grids.
    """

    iterations: int = 200
    mapping_rate: float = 0.03
    book_rate: float = 0.01
    proximal: bool = True
    temperature: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_training(self.iterations, self.mapping_rate, 0.0)
        if not 0 <= self.book_rate < math.inf:
            raise UsageError(f"book_rate={self.book_rate!r}: must be at least 0")
        if not 0 < self.temperature <= 1:
            raise UsageError(f"temperature={self.temperature!r}: must lie in (0, 1]")

    def layer(self, weight: Tensor, hessian: Tensor, quantizer: Quantizer) -> Packed:
        grid = quantizer.grid
        if not isinstance(grid, CodebookGrid) or grid.entries != 1:
            raise UsageError(f"JointCodebooks works on codebooks of numbers, grid='kmeans', not on {grid}")
        start = quantizer.encode(weight)
        before = float(output_error(quantizer.decode(start) - weight, hessian).sum())
        elements = rows(weight, quantizer.granularity)
        book = start.codebook.float().reshape(len(elements), -1).sort(1).values
        logits, book = self._train(weight, elements, book, hessian, quantizer, before)
        codes = from_rows(logits.argmax(-1), weight.shape, quantizer.granularity)
        book = book.to(SCALE_TYPES[quantizer.scale_type]).reshape(start.codebook.shape)
        found = Packed(pack_bits(codes.to(torch.uint8), grid.index_bits), None, None, start.shape, book)
        after = float(output_error(quantizer.decode(found) - weight, hessian).sum())
        return found if after < before else start

    def _train(
        self, weight: Tensor, elements: Tensor, book: Tensor, hessian: Tensor, quantizer: Quantizer, unit: float
    ) -> tuple[Tensor, Tensor]:
        """Logits (books, n, K) and codebooks (books, K) after all steps."""
        spacing = (book[:, -1:] - book[:, :1]) / max(1, book.shape[1] - 1)
        logits, moved = first_logits(elements, book).requires_grad_(True), torch.zeros_like(book, requires_grad=True)
        optimizer = torch.optim.Adam([moved], lr=self.book_rate)
        momentum = torch.zeros_like(logits)
        with torch.enable_grad():
            for step in range(self.iterations):
                heat = self.temperature ** (step / max(1, self.iterations - 1))
                mixed = mixture(logits / heat, book + spacing * moved, self.proximal)
                values = from_rows(mixed, weight.shape, quantizer.granularity)
                loss = output_error(values - weight, hessian).sum() / (unit or 1.0)
                logits.grad = moved.grad = None
                loss.backward()
                if self.book_rate:
                    optimizer.step()
                with torch.no_grad():
                    size = logits.grad.square().mean().sqrt().clamp(min=1e-30)
                    momentum.mul_(0.9).add_(logits.grad / size)
                    logits.sub_(self.mapping_rate * momentum)
        return logits.detach(), (book + spacing * moved).detach()
