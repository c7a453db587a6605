"""Masked hints: what of a feature map is imitated is decided by masks that both models make together, anew in every step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.objectives import connectors as connect
from limbeck.objectives import positions
from limbeck.objectives.base import Batch, Connectors
from limbeck.objectives.checks import require_choice, require_connectors, require_whole
from limbeck.objectives.features.activations import channels_over_places
from limbeck.objectives.layer_pair import LayerPair
from limbeck.signals import Signals

SIDES = ("student", "teacher")
TINY = 1e-6  # the sum of a mask that is shut everywhere


class MaskUnits(nn.Module):
    """Two features fused by cross-attention over places, and masks over channels and over places that are read off the fusion.

    F = softmax(Q K^T / sqrt(C/2)) V,   Q = W_q x, K = W_k y of width C/2, V = W_v y of width C
    channel masks = sigmoid(m_c v), v the mean of F over places;   spatial masks = sigmoid(m_s F)

    `forward(x, y, counts)`: x, y (B, C, P), counts (B, P) of bools or None where all places count; returns the channel masks
    (B, masks, C) and the spatial masks (B, masks, P), 0 where a place does not count.
    """

    def __init__(self, width: int, masks: int):
        super().__init__()
        narrow = max(width // 2, 1)
        self.query, self.key = nn.Linear(width, narrow, bias=False), nn.Linear(width, narrow, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.channels = nn.Parameter(torch.randn(masks))
        self.places = nn.Parameter(torch.randn(masks, width) / math.sqrt(width))

    def forward(self, x: Tensor, y: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor]:
        query, key, value = self.query(x.transpose(1, 2)), self.key(y.transpose(1, 2)), self.value(y.transpose(1, 2))
        scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
        if counts is not None:
            scores = scores.masked_fill(~counts.unsqueeze(1), -torch.inf)
        fused = scores.softmax(-1) @ value
        spatial = (self.places @ fused.transpose(1, 2)).sigmoid()
        if counts is None:
            mean = fused.mean(1)
        else:
            spatial = spatial * counts.unsqueeze(1)
            mean = (fused * counts.unsqueeze(2)).sum(1) / counts.sum(1, keepdim=True)
        return (self.channels[:, None] * mean.unsqueeze(1)).sigmoid(), spatial


@dataclass(frozen=True)
class MaskedHints(LayerPair):
    """Adaptive cooperative masks: a student's map imitates its teacher's where masks that both have made say so (ACAM-KD).

    E = t - r(s);   (M^c, M^s) = masks(t, r(s)), each of M over the C channels and over the P places
    L_c = 1/M sum_m 1/P sum_k M^c_mk |M^c_mk E_k|^2        E_k: a channel, over the places
    L_s = 1/M sum_m 1/C sum_p M^s_mp |M^s_mp E_p|^2        E_p: a place, over the channels
    L_div = sum over both kinds of  2 sum_{i != j} M_i . M_j / (sum_i |M_i|^2 + sum_j |M_j|^2)       (Dice: masks unlike each other)
    L = mean over examples of L_c + L_s + diversity L_div

    r: the projector ("projector": "auto", see `limbeck.objectives.connectors.projector`). The masks (`MaskUnits`) come from
    cross-attention whose queries are the teacher's places and whose keys and values are the student's; projector and masks are
    connectors, learnt with the student, and the gradient passes through the masks.

    student, teacher: layers; one name serves both. masks: M, 6 in the paper for detection, the number of classes for segmentation, where
    the maps are the predicted ones. weighting: "sum", as above, or "share": sum_k |M^c_mk E_k|^2 / sum_k M^c_mk, and alike for places, so
    that a wide or large map weighs no more than a small one. query, key: whose
    features ask and answer; both "teacher" makes masks without the student. detached: the gradient to the student does not pass through
    the masks. Shapes: maps (B, C, H, W) or sequences (B, L, D), whose padding is no place; of two sizes: averaged to the smaller. Raises
    UsageError for vectors.

    Source: Lan and Tian, "ACAM-KD: Adaptive and Cooperative Attention Masking for Knowledge Distillation", ICCV 2025 (weights alpha and
    lambda 1). Read in public notes that copy the equations; there is no code by the authors. The notes have the mask before the
    norm and inside it: "sum" is that, entry by entry; "share" takes the first as a divisor, as masked distillation before it has it. Choices
    where the notes are silent: which masks the diversity is over (both kinds), the units' first weights (normal), the student enters the
    fusion through r.
    """

    student: str
    teacher: str | None = None
    masks: int = 6
    diversity: float = 1.0
    weighting: str = "sum"
    query: str = "teacher"
    key: str = "student"
    detached: bool = False
    projector: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole(self, "masks", self.masks)
        require_choice(self, "weighting", self.weighting, ("sum", "share"))
        require_choice(self, "query", self.query, SIDES)
        require_choice(self, "key", self.key, SIDES)
        require_choice(self, "projector", self.projector, connect.PROJECTORS)
        value = self.diversity
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise UsageError(f"{self.name}: diversity={value!r} must be a finite weight of at least 0")

    def connectors(self, student: Signals, teacher: Signals) -> dict[str, nn.Module]:
        own, target = self._places(student, teacher, {})
        made = connect.projector(own, target, self.projector)
        units = MaskUnits(connect.width(target), self.masks).to(own.device)
        return {"masks": units} | ({} if made is None else {"projector": made})

    def _places(self, student: Signals, teacher: Signals, batch: Batch) -> tuple[Tensor, Tensor]:
        own, target = self.pair(student, teacher)
        if own.dim() == 2 or target.dim() == 2:
            raise UsageError(
                f"{self.name} masks maps (B, C, H, W) or sequences (B, L, D), which have places; the signals have the "
                f"shapes {tuple(own.shape)} and {tuple(target.shape)}"
            )
        return self.matched(student, teacher, batch)

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        own, target, masks, counts = self._masked(student, teacher, batch, connectors)
        examples = batch.get("sample_weight")
        with torch.autocast(own.device.type, enabled=False):
            squared = (target - own).square()
            if counts is not None:
                squared = squared * counts.unsqueeze(1)
            places = squared.shape[2] if counts is None else counts.sum(1, keepdim=True)
            parts = (squared.sum(2) / places, squared.sum(1) / squared.shape[1])
            loss = sum(
                masked_error(m, part, self.weighting) + self.diversity * overlap(m) for m, part in zip(masks, parts)
            )
        return positions.mean(loss, None if examples is None else examples.float())

    def _masked(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors):
        """The projected student's feature and the teacher's (B, C, P), their masks, and which places count (B, P) or None."""
        own, target = self._places(student, teacher, batch)
        require_connectors(self, connectors, "masks", *(name for name in ("projector",) if name in connectors))
        weights = positions.weights(
            batch, (len(own), *(own.shape[2:] if own.dim() == 4 else own.shape[1:2])), labels=False
        )
        own, target = (channels_over_places(x, weights) for x in (own, target))
        counts = None if weights is None else (weights != 0).flatten(1)
        if counts is not None:
            counts = counts | ~counts.any(1, keepdim=True)  # an example of weight 0 is blank and weighs nothing
        with torch.autocast(own.device.type, enabled=False):
            if "projector" in connectors:
                own = _projected(connectors["projector"], own)
            if own.shape != target.shape:
                raise UsageError(
                    f"{self.name}: {own.shape[1]} channels of the student beside {target.shape[1]} of the teacher; hand over "
                    "what objective.connectors(student, teacher) made"
                )
            asked = {"student": own.detach() if self.detached else own, "teacher": target}
            return own, target, connectors["masks"](asked[self.query], asked[self.key], counts), counts

    def made_masks(
        self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors
    ) -> tuple[Tensor, Tensor]:
        """The masks of this batch: over channels (B, M, C) and over places (B, M, P)."""
        return self._masked(student, teacher, batch, connectors)[2]


def _projected(connector: nn.Module, x: Tensor) -> Tensor:
    """(B, C, P) through a projector of maps or of sequences."""
    if isinstance(connector, nn.Conv2d):
        return connect.project(connector, x.unsqueeze(3)).squeeze(3)
    return connect.project(connector, x.transpose(1, 2)).transpose(1, 2)


def masked_error(masks: Tensor, error: Tensor, weighting: str = "sum") -> Tensor:
    """Mean over masks of sum_k m_k^3 e_k, or "share": sum_k m_k^2 e_k / sum_k m_k. Masks (B, M, K), squared errors (B, K), to (B,)."""
    if weighting == "sum":
        return (masks.pow(3) @ error.unsqueeze(2)).mean((1, 2))
    return ((masks.square() @ error.unsqueeze(2)).squeeze(2) / masks.sum(2).clamp(min=TINY)).mean(1)


def overlap(masks: Tensor) -> Tensor:
    """Dice overlap of all pairs of masks: 2 sum_{i != j} m_i . m_j / (sum_i |m_i|^2 + sum_j |m_j|^2); (B, M, K) to (B,).

    0 for masks without a common entry, M - 1 for equal ones.
    """
    squares = masks.square().sum((1, 2))
    return (masks.sum(1).square().sum(1) - squares) / squares.clamp(min=TINY**2)
