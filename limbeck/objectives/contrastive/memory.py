"""Contrastive representation distillation: an example against many others, which a memory bank remembers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.objectives import connectors as connect
from limbeck.objectives import divergences, positions
from limbeck.objectives.base import Batch, Connectors, Objective
from limbeck.objectives.checks import (
    example_index,
    require_choice,
    require_connectors,
    require_positive,
    require_signal,
    require_whole,
)
from limbeck.signals import LOGITS, Reads, Signals


@dataclass(frozen=True)
class MemoryContrast(Objective):
    """CRD: student and teacher agree on what an example is, told from thousands of others that a memory bank remembers.

    L = mean over examples i of  sum over both directions of  -log h(i, i) - sum over K others j of log(1 - h(i, j))
    h(i, j) = e_ij / (e_ij + K / M),   e_ij = exp(<g_s(s_i), bank_t[j]> / temperature) / Z, and <g_t(t_i), bank_s[j]> the other way

    g_s and g_t are linear layers to `width` units, scaled to length 1; each bank holds the last embeddings of all M = `examples`
    training examples of one model, and a row moves to momentum * row + (1 - momentum) * new, scaled to length 1, when its example
    was seen. All of it are connectors: trained with the student, and part of a checkpoint. The K = `negatives` others are drawn anew for
    every batch, the same for all its rows (all M rows where K >= M; K then is what is left); an example is never its own
    negative, with others="classes" neither are those of its class. normalize=True: Z is the mean of e over the first
    batch times M, kept from then on; else Z = 1.

    student, teacher: features; maps and sequences are averaged over their positions. Needs batches with `index`, the example's
    position in the train split, and for "classes" `labels` (B,). Examples of weight 0 are neither learnt nor remembered.
    Raises UsageError for an index that the bank does not have, and for training in several processes, each of which would
    remember only its own part.
    Source: Tian et al., "Contrastive Representation Distillation", 2020, eq. 18-19 (weight 0.8). The authors'
    code has normalize=True and leaves out the own class; it draws the others for every row by itself, with repetitions.
    """

    examples: int
    student: str = LOGITS
    teacher: str = LOGITS
    width: int = 128
    negatives: int = 16384
    temperature: float = 0.07
    momentum: float = 0.5
    others: str = "classes"
    normalize: bool = False

    def __post_init__(self) -> None:
        require_whole(self, "examples", self.examples, 2)
        require_whole(self, "width", self.width)
        require_whole(self, "negatives", self.negatives)
        require_positive(self, "temperature", self.temperature)
        require_choice(self, "others", self.others, ("classes", "examples"))
        require_signal(self, "student", self.student)
        require_signal(self, "teacher", self.teacher)
        if isinstance(self.momentum, bool) or not isinstance(self.momentum, (int, float)) or not 0 <= self.momentum < 1:
            raise UsageError(f"{self.name}: momentum={self.momentum!r} must lie in [0, 1)")

    @property
    def reads(self) -> Reads:
        return Reads(student=frozenset({self.student}), teacher=frozenset({self.teacher}))

    def connectors(self, student: Signals, teacher: Signals) -> dict[str, nn.Module]:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            count = torch.distributed.get_world_size()
            if count > 1:
                raise UsageError(f"{self.name} keeps one memory bank, and {count} processes train: use one")
        own, target = student[self.student], teacher[self.teacher]
        made = {
            "student": nn.Linear(connect.width(own), self.width),
            "teacher": nn.Linear(connect.width(target), self.width),
            "bank": MemoryBank(self.examples, self.width),
        }
        return {name: module.to(own.device) for name, module in made.items()}

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        own = connect.pool(student[self.student], batch)
        target = connect.pool(teacher[self.teacher].detach(), batch)
        if len(own) != len(target):
            raise UsageError(f"{self.name}: the student has {len(own)} examples and the teacher {len(target)}")
        require_connectors(self, connectors, "student", "teacher", "bank")
        bank = connectors["bank"]
        index, labels = example_index(self.name, batch, len(bank.classes)), self._labels(batch, len(own))
        own, target, weights = positions.present(batch, own, target)
        if not len(own):
            return positions.precise(own).sum() * 0
        if weights is not None:
            there = batch["sample_weight"] != 0
            index, labels = index[there], labels[there]
        with torch.autocast(own.device.type, enabled=False):
            ours, theirs = (
                divergences.directions(connect.project(connectors[side], x))
                for side, x in (("student", own), ("teacher", target))
            )
            drawn = bank.draw(self.negatives)
            excluded = bank.same(drawn, index, labels if self.others == "classes" else None)
            total = 0.0
            for anchors, remembered, constant in ((ours, bank.teacher, 0), (theirs, bank.student, 1)):
                right = (anchors * remembered[index]).sum(1) / self.temperature
                wrong = anchors @ remembered[drawn].transpose(0, 1) / self.temperature
                if self.normalize:
                    scale = bank.log_constant(constant, right, wrong, excluded)
                    right, wrong = right - scale, wrong - scale
                total = total + discrimination_loss(right, wrong, excluded, self.examples)
            bank.remember(index, labels, ours, theirs, self.momentum)
        return positions.mean(total, weights)

    def _labels(self, batch: Mapping[str, Any], count: int) -> Tensor:
        """The examples' classes; where they do not matter, -1."""
        labels = batch.get("labels")
        if self.others == "examples":
            return torch.full_like(batch["index"], -1)
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != (count,):
            raise UsageError(
                f"{self.name} needs batch['labels'], a class (B,) for each example, to leave out its own class: or set "
                "others='examples'"
            )
        return labels


def discrimination_loss(right: Tensor, wrong: Tensor, excluded: Tensor, examples: int) -> Tensor:
    """-log h of the matching pairs minus the sum of log(1 - h) of the others, h = sigmoid(score - log(K / M)): (B,).

    right (B,) and wrong (B, K) are log e of `MemoryContrast`; excluded (B, K): no negative of this row; K: those left in a row.
    """
    left = (~excluded).sum(1)
    shift = (left.clamp(min=1).to(right.dtype) / examples).log()
    apart = F.softplus(wrong - shift.unsqueeze(1)).masked_fill(excluded, 0).sum(1)
    return F.softplus(shift - right) + apart


class MemoryBank(nn.Module):
    """The last embeddings of every training example by student and teacher, (M, width) each, their classes and two constants."""

    def __init__(self, examples: int, width: int):
        super().__init__()
        bound = 1 / math.sqrt(width / 3)
        for side in ("student", "teacher"):
            self.register_buffer(side, torch.empty(examples, width).uniform_(-bound, bound))
        self.register_buffer("classes", torch.full((examples,), -1))
        self.register_buffer("constants", torch.full((2,), torch.nan))

    def draw(self, count: int) -> Tensor:
        """Indices of `count` different rows, or of all."""
        examples = len(self.classes)
        if count >= examples:
            return torch.arange(examples, device=self.classes.device)
        return torch.randperm(examples, device=self.classes.device)[:count]

    def same(self, drawn: Tensor, index: Tensor, labels: Tensor | None) -> Tensor:
        """Whether a drawn row is the example itself, or, with labels, of its class: (B, K)."""
        own = drawn.unsqueeze(0) == index.unsqueeze(1)
        return own if labels is None else own | (self.classes[drawn].unsqueeze(0) == labels.unsqueeze(1))

    @torch.no_grad()
    def log_constant(self, which: int, right: Tensor, wrong: Tensor, excluded: Tensor) -> Tensor:
        """log Z: the logarithm of the mean of exp(score) times M, of the first batch that asks."""
        if bool(self.constants[which].isnan()):
            scores = torch.cat([right.unsqueeze(1), wrong.masked_fill(excluded, -torch.inf)], 1)
            count = right.numel() + (~excluded).sum()
            self.constants[which] = scores.logsumexp((0, 1)) - count.log() + math.log(len(self.classes))
        return self.constants[which].clone()

    @torch.no_grad()
    def remember(self, index: Tensor, labels: Tensor, ours: Tensor, theirs: Tensor, momentum: float) -> None:
        """Move the rows of the examples towards their new embeddings."""
        for side, new in (("student", ours), ("teacher", theirs)):
            rows = getattr(self, side)
            moved = momentum * rows[index] + (1 - momentum) * new.to(rows.dtype)
            rows[index] = divergences.directions(moved).to(rows.dtype)
        self.classes[index] = labels.to(self.classes.dtype)
