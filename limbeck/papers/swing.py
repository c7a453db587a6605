"""Swing distillation: soft targets that are flattened and noised where a token may be private.

    T(d) = T_0 + d (T_1 - T_0),   target = softmax(z_t / T(d) + d noise),   d: estimated degree of privacy of the token

A teacher that memorized secrets of its training text hands them on to a student that imitates it. Here the temperature swings
from token to token: an ordinary one is taught as ever, a private one tends to the uniform distribution.

Source: Li et al., "Swing Distillation: A Privacy-Preserving Knowledge Distillation Framework", 2022. Only the abstract and the introduction
could be read: the mapping T(d), the noise (normal, inside the softmax) and the detector (patterns: long numbers, addresses)
are ours, see `limbeck.objectives.ShieldedTargets`.

The miniature: characters of web text with four canaries, "The code of Ada is 4821", in the teacher's and the student's text.
Exposure is exact, log2 10000 - log2 rank among all four-digit codes (13.3 bits when memorized, about 1 by chance). Baseline:
distillation with one temperature. Control: the same share of tokens shielded, chosen without looking. `left_out`: private tokens are
simply not taught. The claim is exposure below that of distillation at a loss on ordinary text within 0.02 nats per token (2 % of
perplexity), margin fixed beforehand. Exposure falls by three quarters; the mean losses agree, but a student of 350 steps varies by more
than the margin from seed to seed, so three seeds leave that part open. Leaving private tokens out protects as well as shielding them. Before, with eight canaries repeated 40
times, distillation itself leaked 2 bits only on the validation seed: the number and repeats of the canaries were chosen from that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from limbeck.beds.answers import stored_answers
from limbeck.beds.canaries import CANARIES
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.objectives import Objective, ShieldedTargets, SoftTargets

BED = CANARIES
STUDENT = {"depth": 2, "width": 96, "heads": 4}
STEPS, RATE, BLOCKS = 350, 3e-3, 2000  # steps, on that many blocks of text, whose answers are stored


class ShieldedAnywhere(ShieldedTargets):
    """The control: as many tokens are shielded, but which ones is drawn anew at every step."""

    def _degree(self, batch: Mapping[str, Any], own: Tensor) -> Tensor:
        degree = super()._degree(batch, own).flatten()
        return degree[torch.randperm(len(degree))].reshape(own.shape[:-1])


class LeftOut(SoftTargets):
    """Private tokens do not count."""

    def compute(self, student, teacher, batch, connectors) -> Tensor:
        labels = batch["labels"].masked_fill(batch["private"] > 0, -100)
        return super().compute(student, teacher, {**batch, "labels": labels}, connectors)


OBJECTIVES: dict[str, Objective] = {
    "swing": ShieldedTargets(temperature=1.0, private_temperature=10.0, noise=1.0),
    "plain": SoftTargets(temperature=1.0),
    "anywhere": ShieldedAnywhere(temperature=1.0, private_temperature=10.0, noise=1.0),
    "left_out": LeftOut(temperature=1.0),
}


def distilled(run: Run, objective: str, steps: int = STEPS) -> dict[str, float]:
    teacher = stored_answers(run, BED.task, BED.teacher(run), BLOCKS)
    student = BED.student(run, **STUDENT)
    BED.fit(run, student, OBJECTIVES[objective], teacher, steps=steps, learning_rate=RATE, limit=BLOCKS, augment=False)
    return {**BED.measure(run, student), "exposure": BED.exposure(student)}


paper = Paper(
    id=44,
    title="Swing Distillation: A Privacy-Preserving Knowledge Distillation Framework",
    claim="Per-token temperatures that rise with the estimated privacy of a token, and noise on its target, cut the exposure of canaries in "
    "the student against plain distillation, at a loss on ordinary text within 0.02 nats.",
    composition="Distil(ShieldedTargets(1, private_temperature=10, noise=1)) on batches with datasets.privacy; measure.exposure",
    metric="exposure",
    better="lower",
    method=Arm(distilled, {"objective": "swing"}, about="temperature and noise rise with privacy"),
    baseline=Arm(distilled, {"objective": "plain"}, about="one temperature (distillation)"),
    control=Arm(distilled, {"objective": "anywhere"}, about="as many tokens shielded, drawn at random"),
    others={"left_out": Arm(distilled, {"objective": "left_out"}, about="private tokens are not taught")},
    comparisons=(
        Comparison(),
        Comparison(against="control"),
        Comparison("loss", margin=0.02, text="as good on ordinary text, up to 0.02 nats per token"),
        Comparison(against="left_out", decisive=False),
    ),
    miniature=Miniature(beds=(BED,), seeds=3),
    left_out="A learned detector of private text; the sweep over privacy budgets; tasks other than language modelling.",
)
