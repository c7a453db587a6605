"""Sparse fine-tuning by the lottery ticket: find out which weights a training moves most, go back, and move only those.

    before = weights_of(model)
    trainer.run(procedure, task)                             # all weights
    masks = most_changed(before, model, 0.08)
    rewind(model, before, masks)
    trainer.run(SparseTuning(procedure, masks), task)        # those of the masks
    SparseDelta.between(before, model).add_to(another)       # what was learnt is small, and adds up

Source: Ansell et al., "Composable Sparse Fine-Tuning for Cross-Lingual Transfer", ACL 2022, section 3.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError, did_you_mean
from limbeck.files import digest
from limbeck.training.constraints import Around
from limbeck.training.procedures import Procedure, State


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def most_changed(
    before: Mapping[str, Tensor],
    model: nn.Module,
    share: float,
    free: Sequence[str] = (),
    fixed: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Masks by parameter name, true at the round(share * n) entries that are furthest from where they were.

    m_i = [ |w_i - w_i^before| is among the k largest of all parameters together ],   k = round(share * n)

    n counts the entries of the parameters that take part: those that match none of the patterns `free` (a new classifier, which is
    trained as a whole and has no mask) or `fixed` (normalizations, say: their masks are false everywhere). Ties go to the entry that comes first.
    Raises UsageError for a share outside (0, 1], a pattern that matches nothing, and another model's weights.
    """
    if isinstance(share, bool) or not 0 < share <= 1:
        raise UsageError(f"most_changed: share={share!r} must lie in (0, 1]")
    now = dict(model.named_parameters())
    if {name: value.shape for name, value in before.items()} != {name: value.shape for name, value in now.items()}:
        raise UsageError("most_changed: before holds other parameters than the model has: take weights_of(model)")
    for pattern in (*free, *fixed):
        if not fnmatch.filter(now, pattern):
            raise UsageError(f"most_changed: no parameter is named {pattern!r}. {did_you_mean(pattern, now)}")
    spared = {name for pattern in free for name in fnmatch.filter(now, pattern)}
    still = {name for pattern in fixed for name in fnmatch.filter(now, pattern)} - spared
    moved = {
        name: (value.detach() - before[name]).abs().flatten()
        for name, value in now.items()
        if name not in spared | still
    }
    if not moved:
        raise UsageError("most_changed: free and fixed leave no parameter to choose from")
    everything = torch.cat(list(moved.values()))
    count = max(1, round(share * len(everything)))
    chosen = torch.zeros_like(everything, dtype=torch.bool)
    chosen[everything.sort(descending=True, stable=True).indices[:count]] = True
    pieces = chosen.split([len(value) for value in moved.values()])
    masks = {name: piece.reshape(now[name].shape) for name, piece in zip(moved, pieces)}
    return masks | {name: torch.zeros_like(now[name], dtype=torch.bool) for name in sorted(still)}


@torch.no_grad()
def rewind(
    model: nn.Module, before: Mapping[str, Tensor], names: Sequence[str] | Mapping[str, Any] | None = None
) -> None:
    """Put the named parameters back to what they were, all of them where none are named."""
    for name, parameter in model.named_parameters():
        if names is None or name in names:
            parameter.copy_(before[name])


class SparseTuning(Around):
    """Any procedure that moves only the entries its masks allow:  w_i stays what it is now where m_i is false.

    masks: by parameter name, as `most_changed` makes them; a parameter without one moves freely. module: the procedure's module they are
    of. Entries are put back after every step, so neither weight decay nor momentum moves them; the norm that gradients are clipped by
    is that of all entries. Raises UsageError for a module or parameter that is not there and a mask of another shape.
    """

    def __init__(self, procedure: Procedure, masks: Mapping[str, Tensor], module: str = "student"):
        if module not in procedure.modules:
            raise UsageError(f"SparseTuning: no module {module!r}. {did_you_mean(module, procedure.modules)}")
        self.procedure, self.module = procedure, module
        owned = dict(procedure.modules[module].named_parameters())
        for name, mask in masks.items():
            if name not in owned:
                raise UsageError(f"SparseTuning: no parameter is named {name!r}. {did_you_mean(name, owned)}")
            if mask.shape != owned[name].shape or mask.dtype != torch.bool:
                raise UsageError(
                    f"SparseTuning: the mask of {name!r} is {mask.dtype} {tuple(mask.shape)}; it must be bool "
                    f"{tuple(owned[name].shape)}"
                )
        self.masks = {name: mask.clone() for name, mask in masks.items()}
        self.start = {name: owned[name].detach().clone() for name in masks}

    @torch.no_grad()
    def after_step(self, state: State) -> None:
        parameters = dict(self.modules[self.module].named_parameters())
        for name, mask in self.masks.items():
            parameter = parameters[name]
            if mask.device != parameter.device:
                mask = self.masks[name] = mask.to(parameter.device)
                self.start[name] = self.start[name].to(parameter.device)
            parameter.copy_(torch.where(mask, parameter, self.start[name]))
        super().after_step(state)

    def describe(self) -> Any:
        masks = {name: mask.flatten().nonzero().flatten().tolist() for name, mask in self.masks.items()}
        return {"procedure": "SparseTuning", "masks": digest(masks), "inner": self.procedure.describe()}


@dataclass(frozen=True, eq=False)
class SparseDelta:
    """What a sparse fine-tuning changed: per parameter, which entries and by how much.

    changes: {name: (indices into the flat parameter (k,), int32 or int64 as its size needs, differences (k,))}. Deltas of several
    trainings from the same weights add up: a language's and a task's.
    """

    changes: Mapping[str, tuple[Tensor, Tensor]]

    @staticmethod
    def between(before: Mapping[str, Tensor], model: nn.Module) -> SparseDelta:
        """Every entry that is not what it was."""
        changes = {}
        for name, parameter in model.named_parameters():
            difference = (parameter.detach() - before[name]).flatten().cpu()
            at = difference.nonzero().flatten()
            kind = torch.int32 if difference.numel() < 2**31 else torch.int64
            if len(at):
                changes[name] = at.to(kind), difference[at]
        return SparseDelta(changes)

    @torch.no_grad()
    def add_to(self, model: nn.Module, factor: float = 1.0) -> nn.Module:
        """Add it, times `factor`, to a model of the same parameters, in place; -1 takes it away. Returns the model.

        Raises UsageError for a parameter that the model has not, or has in another size.
        """
        parameters = dict(model.named_parameters())
        for name, (at, difference) in self.changes.items():
            if name not in parameters or parameters[name].numel() <= int(at.max()):
                raise UsageError(f"SparseDelta: {type(model).__name__} has no {name!r} of the size this was made for")
            parameter = parameters[name]
            flat = parameter.flatten().index_add(0, at.long().to(parameter.device), factor * difference.to(parameter))
            parameter.copy_(flat.view_as(parameter))
        return model

    @property
    def count(self) -> int:
        """How many entries it changes."""
        return sum(len(at) for at, _ in self.changes.values())

    @property
    def nbytes(self) -> int:
        """The bytes of its tensors."""
        return sum(tensor.nbytes for pair in self.changes.values() for tensor in pair)
