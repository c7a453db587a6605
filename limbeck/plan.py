"""Plans: a Transform's decisions as plain JSON, replayable on an empty model.

A Transform decides in `plan` (it may look at data) and `apply` changes the model (it may not). Loading an artifact builds
the empty architecture, replays its plans in order and then loads the weights strictly; so after `apply` the module tree,
the names and the shapes depend on the plan alone.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from limbeck.errors import ArtifactError, did_you_mean
from limbeck.files import canonical_json, digest

# kind -> (newest version this Limbeck replays, "module:function"); imported only when a plan of that kind is applied
KINDS: dict[str, tuple[int, str]] = {
    "prune_structured": (1, "limbeck.pruning.structured:apply"),
    "prune_layers": (1, "limbeck.pruning.depth:apply"),
    "mask": (1, "limbeck.pruning.sparsity:apply"),
    "low_rank": (1, "limbeck.factorization.low_rank:apply"),
    "trim_vocabulary": (1, "limbeck.pruning.vocabulary:apply"),
    "quantize": (1, "limbeck.quantization.quantize:apply"),
    "replace": (1, "limbeck.conversion.replace:apply"),
    "fold_batch_norm": (1, "limbeck.quantization.folding:apply"),
    "sequence": (1, "limbeck.plan:apply_sequence"),
    "quantize_softmax": (1, "limbeck.quantization.activations:apply"),
    "rescale": (1, "limbeck.quantization.equivalence.folds:apply"),
    "rotate": (1, "limbeck.quantization.equivalence.rotate:apply"),
    "clip_weights": (1, "limbeck.quantization.equivalence.awq:apply_clip"),
    "split_experts": (1, "limbeck.conversion.experts:apply"),
    "grow_classifier": (1, "limbeck.conversion.classifier:apply_growth"),
    "align_classifier": (1, "limbeck.conversion.classifier:apply_alignment"),
}


@dataclass(frozen=True)
class Plan:
    """`kind` names who replays it, `version` its format, `decisions` is plain JSON (lists, dicts, numbers, strings)."""

    kind: str
    decisions: dict[str, Any] = field(default_factory=dict)
    version: int = 1

    def __post_init__(self) -> None:
        try:
            text = canonical_json(self.decisions)
        except (TypeError, ValueError) as error:
            raise TypeError(f"a plan holds plain finite JSON only: {error}") from error
        object.__setattr__(self, "decisions", json.loads(text))

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "version": self.version, "decisions": self.decisions}

    @staticmethod
    def from_json(value: Any) -> Plan:
        """Read a plan back. Raises ArtifactError for anything that is not one."""
        if not isinstance(value, dict) or set(value) != {"kind", "version", "decisions"}:
            raise ArtifactError("a plan must have exactly the keys kind, version and decisions")
        if not isinstance(value["decisions"], dict) or type(value["version"]) is not int:
            raise ArtifactError(f"plan {value['kind']!r}: decisions must be an object and version a whole number")
        if not isinstance(value["kind"], str):
            raise ArtifactError(f"a plan's kind must be text, got {value['kind']!r}")
        return Plan(value["kind"], value["decisions"], value["version"])

    @property
    def digest(self) -> str:
        return digest(self.to_json())

    def lean(self) -> Plan:
        """The plan without `decisions["data"]`: what an empty model needs.

        By convention `data` holds what only changes values (masks, bases found on calibration data), never names or shapes.
        It is left out of a model's lineage, because there the weights carry it already.
        """
        kept = {k: v for k, v in self.decisions.items() if k != "data"}
        if self.kind == SEQUENCE:
            kept["plans"] = [plan.lean().to_json() for plan in _parts(self)]
        return Plan(self.kind, kept, self.version)


SEQUENCE = "sequence"


def in_sequence(*plans: Plan) -> Plan:
    """One plan that carries out several, each on what the one before has left."""
    return Plan(SEQUENCE, {"plans": [plan.to_json() for plan in plans]})


def _parts(plan: Plan) -> list[Plan]:
    return [Plan.from_json(value) for value in plan.decisions.get("plans", ())]


def apply_sequence(model: nn.Module, plan: Plan) -> nn.Module:
    """Carry out the plans of a sequence in order."""
    for part in _parts(plan):
        model = _carried_out(model, part)
    return model


class Transform(Protocol):
    """Something that makes a model smaller: a frozen dataclass of hyper-parameters that decides and leaves the doing to
    `apply`. `plan` may read calibration data of the task's train split; it leaves the model as it found it."""

    def plan(self, model: nn.Module, task: Any = None, budget: Any = None) -> Plan: ...


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """Carry out a plan, in place, and return the model (its root may be a new module). Needs no data and no randomness.

    The model's lineage (`limbeck.build.lineage`) gains the plan. Raises ArtifactError for an unknown kind, a newer
    version or a plan that does not fit the model.
    """
    from limbeck.build import extend_lineage

    return extend_lineage(_carried_out(model, plan), model, plan.lean())


def _carried_out(model: nn.Module, plan: Plan) -> nn.Module:
    if plan.kind not in KINDS:
        raise ArtifactError(f"unknown kind of plan {plan.kind!r}. {did_you_mean(plan.kind, KINDS)}")
    newest, target = KINDS[plan.kind]
    if not 1 <= plan.version <= newest:
        raise ArtifactError(
            f"plan {plan.kind!r} has version {plan.version}; this Limbeck replays 1 to {newest}. Install a newer Limbeck."
        )
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)(model, plan)
