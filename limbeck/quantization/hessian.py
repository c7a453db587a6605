"""Layer Hessians: what a layer's rounding error costs at its output, from the layer's inputs.

    sum over positions of ||(W^ - W) x||^2 = n/2 tr((W^ - W) H (W^ - W)^T),    H = 2/n sum x x^T

n positions; those that an attention mask hides are not counted. A convolution is the matrix product of its unfolded patches; with
groups each group of output channels reads inputs of its own, so there is one H per group. Source: Frantar et al., "GPTQ",
ICLR 2023, section 3 (H of the squared layer error).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import DataError
from limbeck.pruning.slicing import is_conv1d


def matrix(module: nn.Module) -> Tensor:
    """The weight of a Linear, Conv1D or Conv2d as a float32 copy (out, what one output reads)."""
    weight = module.weight.detach()
    weight = weight.t() if is_conv1d(module) else weight.flatten(1)
    return weight.to(torch.float32, copy=True).contiguous()


def as_parameter(module: nn.Module, values: Tensor) -> Tensor:
    """The reverse of `matrix`: values (out, n) in the shape and type of the module's weight, differentiable."""
    values = values.t() if is_conv1d(module) else values.reshape(module.weight.shape)
    return values.to(module.weight.dtype)


@torch.no_grad()
def write_matrix(module: nn.Module, values: Tensor) -> None:
    """Put values (out, n) in the place of the module's weight."""
    module.weight.copy_(as_parameter(module, values))


def input_rows(module: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """What the rows of `matrix(module)` are multiplied with: (groups, positions, n) in the type of x.

    x: (..., in) of a linear layer, (B, C, H, W) or (C, H, W) of a convolution. mask: (B, L) of bool, which of the positions of
    an x (B, L, in), or (B L, in), count; of other shapes every position does.
    """
    if isinstance(module, nn.Conv2d):
        x = x if x.dim() == 4 else x.unsqueeze(0)
        x = F.pad(x, module._reversed_padding_repeated_twice)
        patches = F.unfold(x, module.kernel_size, module.dilation, 0, module.stride)  # (B, C kh kw, positions)
        patches = patches.unflatten(1, (module.groups, -1))
        return patches.permute(1, 0, 3, 2).flatten(1, 2)
    if mask is not None and x.shape[:-1] == mask.shape:
        x = x[mask]
    elif mask is not None and x.dim() == 2 and len(x) == mask.numel():
        x = x[mask.flatten()]
    return x.reshape(1, -1, x.shape[-1])


class LayerHessian:
    """Accumulates H = 2/n sum x x^T of one layer over batches; `dtype` of the sums, on the device of the inputs.

    update(x, mask)   one batch of the module's inputs, see `input_rows`. Raises DataError for NaN or infinity.
    value             (groups, n, n)
    take()            the same, and the sums are given up
    positions         how many were counted
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype = torch.float32):
        self.module, self.dtype = module, dtype
        self.total: Tensor | None = None
        self.positions = 0

    @torch.no_grad()
    def update(self, x: Tensor, mask: Tensor | None = None) -> None:
        rows = input_rows(self.module, x.detach(), mask).to(self.dtype)
        product = rows.transpose(1, 2) @ rows
        if not torch.isfinite(product.diagonal(dim1=1, dim2=2)).all():
            raise DataError("an activation is NaN or infinite during calibration; check the model's weights and inputs")
        self.total = product if self.total is None else self.total.add_(product)
        self.positions += rows.shape[1]

    @property
    def value(self) -> Tensor:
        return self._total() * self._share

    def take(self) -> Tensor:
        value, self.total = self._total().mul_(self._share), None
        return value

    @property
    def _share(self) -> float:
        return 2.0 / self.positions

    def _total(self) -> Tensor:
        if self.total is None or not self.positions:
            raise DataError("no calibration batch reached this layer")
        return self.total


def ridge(mean: Tensor, damping: float) -> Tensor:
    """What is added to the diagonal of an H whose diagonal has this mean; 1 for an H of zeros, so that all errors count alike."""
    return torch.where(mean > 0, damping * mean, torch.ones_like(mean))


def damped(hessian: Tensor, damping: float) -> Tensor:
    """H + damping mean(diag H) I, (..., n, n); an H of zeros becomes the identity."""
    added = ridge(hessian.diagonal(dim1=-2, dim2=-1).mean(-1), damping)
    out = hessian.clone()
    out.diagonal(dim1=-2, dim2=-1).add_(added[..., None])
    return out


def output_error(difference: Tensor, hessian: Tensor) -> Tensor:
    """diag(E H E^T) per row: difference E (out, n), hessian (groups, n, n) whose group g the rows [g out/groups, ...) read. (out,)"""
    rows = difference.to(hessian.dtype).unflatten(0, (len(hessian), -1))
    return ((rows @ hessian) * rows).sum(-1).flatten()
