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

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean((2, 3)))


class TokenExit(nn.Module):
    """Tokens (B, L, D) to logits: `blocks` transformer blocks, a normalization, the mean over tokens and a linear layer."""

    def __init__(self, width: int, classes: int, blocks: int, heads: int):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width, 0.0) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


@dataclass(frozen=True)
class AtExit(Objective):
    """An objective on logits, applied to the logits of a branch at a layer of the student.

    L = objective(branch(h_s), teacher's signals, batch)

    layer: the student's signal. objective: reads nothing of the student but logits. depth: of the branch: separable
    convolutions for maps (the paper's is the number of stages after the layer), transformer blocks of `heads` heads for
    tokens; a vector gets a linear layer alone. classes: of the branch; None: the teacher's.

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

    def __post_init__(self) -> None:
        require_signal(self, "layer", self.layer)
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
        return Reads(student=frozenset({self.layer}), teacher=self.objective.reads.teacher)

    def connectors(self, student: Signals, teacher: Signals) -> dict[str, nn.Module]:
        feature = student[self.layer]
        if self.classes is None and LOGITS not in teacher:
            raise UsageError("AtExit: there is no teacher whose classes the branch could have: give classes=...")
        classes = self.classes or teacher.logits.shape[-1]
        if feature.dim() == 4:
            branch = MapExit(feature.shape[1], classes, self.depth)
        elif feature.dim() == 3:
            branch = TokenExit(feature.shape[-1], classes, self.depth, self.heads)
        elif feature.dim() == 2:
            branch = nn.Linear(feature.shape[-1], classes)
        else:
            raise UsageError(
                f"AtExit: {self.layer!r} is {tuple(feature.shape)}; it must be {', '.join(LAYOUTS.values())}"
            )
        return {"branch": branch.to(feature.device)}

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        feature = student[self.layer]
        known = Signals({name: teacher[name] for name in self.objective.reads.teacher})
        if "branch" not in connectors:
            raise UsageError("AtExit needs its branch: hand over what objective.connectors(student, teacher) made")
        feature = positions.blank(feature, positions.weights(batch, feature.shape[:1], labels=False))
        branch = connectors["branch"]
        with torch.autocast(feature.device.type, enabled=False):
            logits = branch(feature.to(next(branch.parameters()).dtype))
        return self.objective.compute(Signals({LOGITS: logits}), known, batch, {})
