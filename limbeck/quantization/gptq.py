"""GPTQ: columns are rounded one after another, and each error is made up for by the columns that are still free.

With error E = W^ - W (out, n) the layer's squared output error is tr(E H E^T). Column by column, the columns that are left move to

    delta_F = - (W^_j - W_j) / [H_F^-1]_jj  [H_F^-1]_(j,:)

the optimum of the quadratic, where F are the free columns (Frantar et al., "GPTQ", ICLR 2023, eq. 2 and 3, after OBQ). Here the same
numbers come from one factorization and no inverse (Chee et al., "QuIP", NeurIPS 2023, theorem 6: GPTQ is LDLQ). With H = R R^T,
R upper triangular (the Cholesky factor of H read backwards), N_kj = R_kj / R_jj:

    ||E R||^2 = tr(E H E^T),     t_j = W_j - sum_(k < j) E_k N_kj,     W^_j = nearest grid value to t_j

and R^-1 is exactly the Cholesky factor of the inverse that GPTQ uses. The sums over k are matrix products over halves of the
columns (lazy blocks, recursively), and single columns only inside runs of `block`.

Act-order: columns in order of falling diag(H), so that what matters is rounded while much is free. Groups: their scales come from
the weights before rounding (static), or, in the stored order, from the group's columns as they are when the first of them is due.

Run beside llm-compressor 0.14 on random layers (4 bits, groups of 64, act-order; benchmarks/quantization.py) 99.4 % or more of the weights are
the same, the others fell to the other side of a near tie, and the errors agree to 3e-4 of themselves; it took 0.3 to 0.6 of its time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import DataError, UsageError
from limbeck.quantization import columns as columns_of
from limbeck.quantization.contract import Packed
from limbeck.quantization.granularity import PerGroup
from limbeck.quantization.grids import Quantizer
from limbeck.quantization.hessian import ridge
from limbeck.quantization.rounding import LayerRounding, by_group, scale_rows


def reversed_factor(hessian: Tensor, order: Tensor, damping: float) -> Tensor:
    """Upper triangular R (n, n) with R R^T = H + damping mean(diag H) I, of the columns and rows of `hessian` in this order.

    An H that is not positive definite even so is damped ten times as much, twice at most. Raises DataError then. At most two matrices
    of this size are made at a time.
    """
    flipped = hessian[order][:, order]
    mean = flipped.diagonal().mean(-1)
    flipped = flipped.flip(0, 1)
    diagonal = flipped.diagonal().clone()
    for attempt in range(3):
        flipped.diagonal().copy_(diagonal + ridge(mean, damping * 10.0**attempt))
        factor, failed = torch.linalg.cholesky_ex(flipped)
        if not failed and torch.isfinite(mean):
            del flipped
            return factor.flip(0, 1)
    raise DataError(
        f"a layer's Hessian is not positive definite with damping {damping}; raise damping or give more data"
    )


def halves(low: int, high: int, block: int, unit: int) -> Iterator[tuple[int, int, int]]:
    """The steps that round the columns from `low` to `high`, in order: (low, high, high) are columns to round one by one, and (low, middle,
    high) those up to `middle`, all rounded, whose errors move the ones after. At most `block` columns at a time, cut at multiples of `unit`.

    Not a function inside `gptq` that calls itself: that would refer to itself, and keep the tensors there until garbage is collected.
    """
    if high - low <= block:
        yield low, high, high
        return
    step = unit if high - low > unit else 1
    middle = low + step * -(-(high - low) // (2 * step))
    yield from halves(low, middle, block, unit)
    yield low, middle, high
    yield from halves(middle, high, block, unit)


def gptq(
    weight: Tensor,
    hessian: Tensor,
    quantizer: Quantizer,
    damping: float = 0.01,
    act_order: bool = True,
    static_groups: bool | None = None,
    block: int = 32,
    parameters: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (out, n) int8 or uint8, scale and zero point (as `parameter_shape` of the weight) by GPTQ.

    weight (out, n); hessian (n, n), in whose type everything is computed. The rest: see `GPTQ`. parameters: scale and zero point
    to keep to, by default those that the quantizer finds. With a diagonal Hessian this is rounding to the nearest.
    """
    granularity, put = quantizer.granularity, columns_of.onto(quantizer)
    rows, columns = weight.shape
    static_groups = act_order if static_groups is None else static_groups
    dynamic = isinstance(granularity, PerGroup) and not static_groups
    scale, zero = columns_of.parameters(weight, quantizer) if parameters is None else parameters
    scales, group = scale_rows(scale.float(), rows, columns, granularity)
    zeros, _ = scale_rows(zero, rows, columns, granularity)
    perm = (
        hessian.diagonal().argsort(descending=True, stable=True)
        if act_order
        else torch.arange(columns, device=weight.device)
    )
    group, kind = group[perm].tolist(), hessian.dtype
    coupling = reversed_factor(hessian, perm, damping)
    coupling.div_(coupling.diagonal().clone())  # N, unit upper triangular
    target = weight.t()[perm].to(kind)  # row j: t_j as far as it is known
    error = torch.empty_like(target)
    codes = torch.empty(columns, rows, dtype=getattr(quantizer.grid, "code_type", torch.uint8), device=weight.device)
    original = target.clone()
    unit = granularity.size if dynamic else 1

    def column(j: int) -> None:
        codes[j], values = put(target[j], scales[group[j]], zeros[group[j]])
        torch.sub(values, original[j], out=error[j])

    def start_group(low: int, high: int) -> None:
        # the free columns as the optimum has them: E_G N_GG = -(what the columns before leave), a triangular system
        shift = torch.linalg.solve_triangular(
            coupling[low:high, low:high].t(), target[low:high] - original[low:high], upper=False
        )
        moved = (original[low:high] + shift).t().contiguous()
        s, z = columns_of.parameters(moved.float(), quantizer)
        scales[low // unit], zeros[low // unit] = s.float().reshape(-1), z.reshape(-1)

    for low, middle, high in halves(0, columns, min(block, unit) if dynamic else block, unit):
        if middle < high:
            target[middle:high] -= coupling[low:middle, middle:high].t() @ error[low:middle]
            continue
        if dynamic and low % unit == 0:
            start_group(low, min(low + unit, columns))
        column(low)
        for j in range(low + 1, high):
            target[j] -= coupling[low:j, j] @ error[low:j]
            column(j)
    if dynamic:
        scale, zero = scales.t().contiguous().to(scale.dtype), zeros.t().contiguous()
    back = torch.empty_like(codes)
    back[perm] = codes
    return back.t().contiguous(), scale, zero


@dataclass(frozen=True)
class GPTQ(LayerRounding):
    """Second-order rounding column by column; see the module for formula and sources.

    damping        share of the mean of H's diagonal that is added to it
    act_order      columns in order of falling diag(H)
    static_groups  scales of groups from the weights before rounding; None: as act_order, which needs them static, because groups are
                   stored as consecutive inputs
    block          columns that are rounded singly, between matrix products; no effect on the result

    Raises UsageError for a damping that is not positive, a block below 1, and act_order without static groups.
    """

    damping: float = 0.01
    act_order: bool = True
    static_groups: bool | None = None
    block: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.damping < float("inf"):
            raise UsageError(f"damping={self.damping!r}: must be above 0; 0.01 is usual")
        if type(self.block) is not int or self.block < 1:
            raise UsageError(f"block={self.block!r}: must be a whole number of at least 1")
        if self.act_order and self.static_groups is False:
            raise UsageError(
                "static_groups=False: with act_order scales of groups must be static; leave one of both out"
            )

    def layer(self, weight: Tensor, hessian: Tensor, quantizer: Quantizer) -> Packed:
        settings = (self.damping, self.act_order, self.static_groups, self.block)
        return by_group(weight, hessian, quantizer, lambda *given: gptq(*given[:3], *settings, given[3]))
