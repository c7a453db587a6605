"""Objectives on features: hidden layers and embeddings, position by position."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.objectives import connectors as connect
from limbeck.objectives import divergences, positions
from limbeck.objectives.base import Batch, Connectors
from limbeck.objectives.checks import require_choice, require_signal
from limbeck.objectives.layer_pair import LayerPair
from limbeck.signals import LOGITS, Signals

DISTANCES = {
    "mse": divergences.mean_squared_error,
    "l1": divergences.mean_absolute_error,
    "smooth_l1": divergences.smooth_absolute_error,
    "cosine": divergences.cosine_distance,
    "half_squared_norm": divergences.half_squared_norm,
    "norm": divergences.norm,
}


class _Projected(LayerPair):
    """What objectives with one pair of signals and one projector share: fields `student`, `teacher`, `projector`."""

    def connectors(self, student: Signals, teacher: Signals) -> dict[str, nn.Module]:
        made = connect.projector(*self.matched(student, teacher, {}), self.projector)
        return {} if made is None else {"projector": made}

    def _pair(
        self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The projected student's feature, the teacher's, both with the width last, and the weights of their positions."""
        own, target = self.matched(student, teacher, batch)
        weights = positions.weights(
            batch, (own.shape[0], *(own.shape[2:] if own.dim() == 4 else own.shape[1:-1])), labels=False
        )
        if weights is not None:  # before the projector too: what does not count may be anything
            own = (
                positions.blank(own, weights)
                if own.dim() < 4
                else positions.blank(own.movedim(1, -1), weights).movedim(-1, 1)
            )
        if "projector" in connectors:
            own = connect.project(connectors["projector"], own)
        elif self.projector not in ("auto", "none") or connect.width(own) != connect.width(target):
            connect.projector(own, target, self.projector)  # says what is wrong with projector="none"
            raise UsageError(
                f"{self.name} needs its projector: hand over what objective.connectors(student, teacher) made"
            )
        if own.dim() == 4:
            own, target = own.movedim(1, -1), target.movedim(1, -1)
        if own.shape != target.shape:
            raise UsageError(
                f"{self.name}: the projector yields {tuple(own.shape)}; the teacher has {tuple(target.shape)}"
            )
        return positions.blank(own, weights), positions.blank(target, weights), weights


@dataclass(frozen=True)
class Hint(_Projected):
    """Hints: a hidden layer of the student, through a projector, imitates a hidden layer of the teacher.

    L = mean over positions of distance(r(h_s), h_t),   r: identity, a linear layer or a 1x1 convolution

    student, teacher: module paths; one name serves both. loss: "mse" (mean over the width), "l1", "smooth_l1", "cosine", or
    "half_squared_norm" (1/2 |.|^2 of an example's whole map or vector, or of a token), "norm" (|.| of a token, a vector or a
    place of a map), or "direction" (|r(h_s) / |r(h_s)| - h_t / |h_t|| with the norms of all positions of the batch together: Qin et al., "BiBERT",
    ICLR 2022, as the authors' code has it for hidden states). projector: see
    `limbeck.objectives.connectors.projector`. resizing of maps of two sizes: "pool" or "interpolate". standardize: the teacher's
    feature of each position minus its mean over the width, over its deviation (Wei et al., "Contrastive Learning Rivals Masked Image
    Modeling in Fine-tuning via Feature Distillation", 2022, section 3). normalize: both features of each position are scaled to length 1,
    the student's after the projector (with "l1" as Bai et al., "Masked Autoencoders Enable Efficient Knowledge Distillers", 2023, where
    the formula has no scaling and the authors' code has it).

    Shapes: vectors (B, D), sequences (B, L, D) or maps (B, C, H, W), also in pairs of two layouts. A position is an
    example, a token (padding does not count) or a place of a map.
    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", 2015, eq. 3.
    Deviation: the paper has half the squared norm of the whole feature (loss="half_squared_norm"); the default is the
    mean over places and channels, as the authors' code has it, so that the weight does not depend on the layer's size.
    The paper's regressor is a convolution whose kernel matches the sizes, followed by the hint layer's nonlinearity;
    here pooling matches the sizes and the projector is linear.
    """

    student: str
    teacher: str | None = None
    loss: str = "mse"
    projector: str = "auto"
    resizing: str = "pool"
    standardize: bool = False
    normalize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "loss", self.loss, (*DISTANCES, "direction"))
        require_choice(self, "projector", self.projector, connect.PROJECTORS)
        require_choice(self, "resizing", self.resizing, connect.RESIZINGS)

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        own, target, weights = self._pair(student, teacher, batch, connectors)
        if self.standardize:
            target = F.layer_norm(positions.precise(target), target.shape[-1:])
        if self.normalize:
            own, target = divergences.directions(own), divergences.directions(target)
        if self.loss == "direction":
            return divergences.direction_distance(own, target, weights)
        loss = DISTANCES[self.loss](own, target)
        if self.loss == "half_squared_norm" and own.dim() == 4:
            loss = loss.sum(dim=(1, 2)) if weights is None else (loss * (weights != 0)).sum(dim=(1, 2))
            weights = None if weights is None else weights.amax(dim=(1, 2))
        return positions.mean(loss, weights)


@dataclass(frozen=True)
class EmbeddingDistance(_Projected):
    """The student's embedding imitates the teacher's, as for sentence encoders.

    L = mean over examples of  a 1/D |r(e_s) - e_t|^2 + b (1 - cos(r(e_s), e_t))

    a = mean_squared_error, b = cosine; r is a linear projector where the widths differ, else the identity. With
    normalize=True both embeddings are scaled to length 1 first (after the projector).
    Shapes: embeddings (B, D); sequences (B, L, D) are averaged over their tokens.
    Source: Reimers and Gurevych, "Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation", 2020, eq. 1.
    Deviation: the cosine term and the projector are additions; the paper has the squared error alone.
    """

    mean_squared_error: float = 1.0
    cosine: float = 0.0
    normalize: bool = False
    student: str = LOGITS
    teacher: str = LOGITS
    projector: str = "auto"

    def __post_init__(self) -> None:
        for name in ("mean_squared_error", "cosine"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise UsageError(f"EmbeddingDistance: {name}={value!r} must be a finite weight of at least 0")
        if self.mean_squared_error == self.cosine == 0:
            raise UsageError("EmbeddingDistance: both weights are 0: there is nothing to minimize")
        require_signal(self, "student", self.student)
        require_signal(self, "teacher", self.teacher)
        require_choice(self, "projector", self.projector, ("auto", "none", "linear"))

    def matched(self, student: Signals, teacher: Signals, batch: Batch) -> tuple[Tensor, Tensor]:
        pair = student[self.student], teacher[self.teacher].detach()
        return tuple(connect.pool(feature, batch) for feature in pair)

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        own, target, weights = self._pair(student, teacher, batch, connectors)
        if self.normalize:
            own, target = divergences.normalized(own), divergences.normalized(target)
        loss = 0.0
        if self.mean_squared_error:
            loss = loss + self.mean_squared_error * divergences.mean_squared_error(own, target)
        if self.cosine:
            loss = loss + self.cosine * divergences.cosine_distance(own, target)
        return positions.mean(loss, weights)
