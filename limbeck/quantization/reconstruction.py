"""Training on the output of one block, with weights that are a function of what is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from limbeck.quantization.streaming import Segment
from limbeck.signals import first_tensor


def block_outputs(segment: Segment) -> list[Tensor]:
    """What the segment's block gives as it is now, one tensor per calibration batch."""
    with torch.no_grad():
        return [first_tensor(c.run(segment.block, x)) for c, x in zip(segment.calls, segment.hidden)]


def block_loss(output: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over positions of the squared error summed over features; positions that the mask (B, L) hides do not count.

    (B, L, d), or (B, C, H, W) whose positions are (B, H, W), or (B, d)."""
    error = (output.float() - target.float()).square()
    error = error.sum(1) if error.dim() == 4 else error.sum(-1)
    if mask is not None and error.shape == mask.shape:
        return error[mask].mean()
    return error.mean()


def block_error(segment: Segment, targets: Sequence[Tensor], values: Mapping[str, Tensor]) -> float:
    """The mean `block_loss` over the calibration batches, with these values of the block's parameters, by their names in the block."""

    def run(*args, **kwargs):
        return torch.func.functional_call(segment.block, dict(values), args, kwargs)

    with torch.no_grad():
        outputs = (first_tensor(c.run(run, x)) for c, x in zip(segment.calls, segment.hidden))
        losses = [block_loss(out, target, c.mask) for out, target, c in zip(outputs, targets, segment.calls)]
    return float(sum(losses) / len(losses))


def reconstruct(
    segment: Segment,
    targets: Sequence[Tensor],
    parameters: Callable[[], Mapping[str, Tensor]],
    groups: Sequence[Mapping[str, object]],
    iterations: int,
    penalty: Callable[[int], Tensor] | None = None,
    seed: int = 0,
) -> list[float]:
    """Adam steps on `groups` (as torch optimizers take them) so that the block's outputs come near the targets; returns the losses.

    parameters() gives the values of the block's parameters, by their names in the block, as functions of what is trained; all others stay as
    they are. Each step takes one calibration batch, drawn by `seed`. penalty(step) is added to `block_loss`.
    """
    optimizer = torch.optim.Adam([dict(group) for group in groups])
    order = torch.randint(len(targets), (iterations,), generator=torch.Generator().manual_seed(seed)).tolist()
    losses = []
    for step, index in enumerate(order):
        made, x = segment.calls[index], segment.hidden[index]
        with torch.enable_grad():
            values = dict(parameters())

            def run(*args, values=values, **kwargs):
                return torch.func.functional_call(segment.block, values, args, kwargs)

            loss = block_loss(first_tensor(made.run(run, x)), targets[index], made.mask)
            losses.append(loss.item())
            if penalty is not None:
                loss = loss + penalty(step)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
    return losses


def inside(segment: Segment, path: str) -> str:
    """The name of a module's weight within the segment's block."""
    return f"{path[len(segment.path) + 1 :]}.weight"
