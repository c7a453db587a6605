"""Exits: a layer of the student gets a classifier of its own while it trains, and any objective on logits applies to it.

    layer's output --branch--> logits (B, classes) --objective--> loss          the branch is dropped after training

In logit space a layer can be compared with a teacher of any architecture, whose own layers it could not imitate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.models.layers import Block
from limbeck.objectives import positions
from limbeck.objectives.base import Batch, Connectors, Objective
from limbeck.objectives.checks import require_signal
from limbeck.objectives.connectors import LAYOUTS
from limbeck.signals import LOGITS, Reads, Signals


class MapExit(nn.Module):
    """Maps (B, C, H, W) to logits: `reductions` separable 3x3 convolutions of stride 2 that double the width, then the mean
    over places and a linear layer. Normalization is over each example, so examples do not mix."""

    def __init__(self, width: int, classes: int, reductions: int):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(reductions):
            layers += [
                nn.Conv2d(width, width, 3, 2, 1, groups=width, bias=False),
                nn.Conv2d(width, 2 * width, 1, bias=False),
                nn.GroupNorm(1, 2 * width),
                nn.ReLU(),
            ]
            width *= 2
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(width, classes)

    def features(self, x: Tensor) -> Tensor:
        """What the linear layer reads: (B, C, H, W) -> (B, width 2^reductions)."""
        return self.layers(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class TokenExit(nn.Module):
    """Tokens (B, L, D) to logits: `blocks` transformer blocks, a normalization, the mean over tokens and a linear layer."""

    def __init__(self, width: int, classes: int, blocks: int, heads: int):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width, 0.0) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def features(self, x: Tensor) -> Tensor:
        """What the linear layer reads: (B, L, D) -> (B, D)."""
        for block in self.blocks:
            x = block(x)
        return self.norm(x).mean(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def exit_branch(owner: str, layer: str, feature: Tensor, classes: int, depth: int, heads: int) -> nn.Module:
    """The branch that fits a feature: for maps, tokens, or, a linear layer alone, for vectors. Raises UsageError for another layout."""
    if feature.dim() == 4:
        branch = MapExit(feature.shape[1], classes, depth)
    elif feature.dim() == 3:
        branch = TokenExit(feature.shape[-1], classes, depth, heads)
    elif feature.dim() == 2:
        branch = nn.Linear(feature.shape[-1], classes)
    else:
        raise UsageError(f"{owner}: {layer!r} is {tuple(feature.shape)}; it must be {', '.join(LAYOUTS.values())}")
    return branch.to(feature.device)


@dataclass(frozen=True)
class AtExit(Objective):
    """An objective on logits, applied to the logits of a branch at a layer of the student.

    L = objective(branch(h_s), teacher's signals, batch)

    layer: the student's signal. objective: reads nothing of the student but logits. depth: of the branch: separable
    convolutions for maps (the paper's is the number of stages after the layer), transformer blocks of `heads` heads for
    tokens; a vector gets a linear layer alone. classes: of the branch; None: the teacher's. teacher: the teacher's signal that the
    objective takes for its logits; of an `EnsembleTeacher`, "1.logits" is what its second member says.

    Shapes: maps (B, C, H, W), tokens (B, L, D) or vectors (B, D); labels (B,). An example of weight 0 does not count.
    Raises UsageError for another layout.
    Source: Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation", NeurIPS
    2023, section 3.2. Deviations: normalization over each example in place of batch normalization; no merging of patches.
    """

    layer: str
    objective: Objective
    depth: int = 1
    heads: int = 4
    classes: int | None = None
    teacher: str = LOGITS

    def __post_init__(self) -> None:
        require_signal(self, "layer", self.layer)
        require_signal(self, "teacher", self.teacher)
        if not isinstance(self.objective, Objective) or self.objective.reads.student != {LOGITS}:
            raise UsageError(
                f"AtExit: objective={self.objective!r} must be an objective that reads the student's logits alone"
            )
        for name, least in (("depth", 0), ("heads", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"AtExit: {name}={value!r} must be a whole number of at least {least}")

    @property
    def name(self) -> str:
        return f"AtExit({self.layer})"

    @property
    def reads(self) -> Reads:
        needed = self.objective.reads.teacher
        return Reads(frozenset({self.layer}), frozenset(self.teacher if name == LOGITS else name for name in needed))

    def connectors(self, student: Signals, teacher: Signals) -> dict[str, nn.Module]:
        feature = student[self.layer]
        if self.classes is None and self.teacher not in teacher:
            raise UsageError("AtExit: there is no teacher whose classes the branch could have: give classes=...")
        classes = self.classes or teacher[self.teacher].shape[-1]
        return {"branch": exit_branch("AtExit", self.layer, feature, classes, self.depth, self.heads)}

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        feature = student[self.layer]
        needed = self.objective.reads.teacher
        known = Signals({name: teacher[self.teacher if name == LOGITS else name] for name in needed})
        if "branch" not in connectors:
            raise UsageError("AtExit needs its branch: hand over what objective.connectors(student, teacher) made")
        feature = positions.blank(feature, positions.weights(batch, feature.shape[:1], labels=False))
        branch = connectors["branch"]
        with torch.autocast(feature.device.type, enabled=False):
            logits = branch(feature.to(next(branch.parameters()).dtype))
        return self.objective(Signals({LOGITS: logits}), known, batch).value
