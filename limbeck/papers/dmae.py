"""DMAE: while a small vision transformer learns to draw hidden patches, it imitates a middle layer of a larger one that learnt so before.

    L = mean over hidden patches (drawn - pixels)^2 + w mean over visible tokens of |g(h_s) / |g(h_s)| - h_t / |h_t||_1 / D

Both see the same few patches, and the teacher runs up to the layer that is read (three quarters of its depth) and no further, so that
distilling costs little more than masked pre-training alone. Then the student is fine-tuned as usual.
Source: Bai et al., "Masked Autoencoders Enable Efficient Knowledge Distillers", CVPR 2023, sections 3 and 4 (w = 1, g one linear layer);
the authors' public code was read: the scaling to length 1 is there only, and it runs the whole teacher, whose end it does not use.
Pieces: `DistilMaskedImages` of `limbeck.training`, `Hint(loss="l1", normalize=True)` of `limbeck.objectives`, a partial `FrozenTeacher`.
"""

from __future__ import annotations

import statistics

from limbeck.beds.patches import UNIT_PATCHES as BED
from limbeck.beds.patches import PatchBed
from limbeck.experiments import Run
from limbeck.measure.latency import time_runs
from limbeck.objectives import CrossEntropy, Hint, Objective, SoftTargets
from limbeck.training import Distil, DistilMaskedImages, MaskedImages, Procedure

TEMPERATURE = 2.0


def alignment(bed: PatchBed, prefix: str = "model.") -> Objective:
    """The visible tokens after three quarters of the blocks of either side, rounded down to whole blocks."""
    own, target = (f"{prefix}blocks.{depth * 3 // 4 - 1}" for depth, _ in (bed.student, bed.teacher))
    return Hint(own, target, loss="l1", normalize=True, projector="linear")


def step_seconds(bed: PatchBed, procedure: Procedure) -> float:
    """The median time of a step and its gradient, without the optimizer, on one thread."""
    batch = next(iter(bed.task().batches("train", bed.batch_size)))

    def step() -> None:
        procedure.step(batch, None)["main"].value.backward()

    return statistics.median(time_runs(step, runs=20, warmup=3))


def learnt(run: Run, bed: PatchBed, procedure: Procedure, steps: int | None = None) -> dict[str, float]:
    """Train on the images without labels and time a step."""
    run.train(procedure, bed.task(), bed.config(steps or bed.distilling_steps))
    return {"step_seconds": step_seconds(bed, procedure)}


def masked(
    run: Run, weight: float = 0.0, ratio: float = 0.75, tuning_rate: float = RATE, bed: PatchBed = BED, **changes
) -> dict[str, float]:
    """Draw hidden patches, aligned with the masked teacher where the weight is not 0; fine-tune and measure."""
    student = bed.new_student(run)
    if weight:
        procedure = DistilMaskedImages(student, bed.masked(run), weight * alignment(bed), ratio=ratio)
    else:
        procedure = MaskedImages(student, ratio)
    cost = learnt(run, bed, procedure, **changes)
    return bed.tuned(run, student, learning_rate=tuning_rate, **changes) | cost


def imitated(run: Run, share: float, tuning_rate: float = RATE, bed: PatchBed = BED, **changes) -> dict[str, float]:
    """Draw hidden patches alone; the teacher, fine-tuned before, is imitated while fine-tuning."""
    student = bed.new_student(run)
    cost = learnt(run, bed, MaskedImages(student), **changes)
    loss = (1 - share) * CrossEntropy() + share * SoftTargets(TEMPERATURE)
    return bed.tuned(run, student, loss, bed.fine_tuned(run), learning_rate=tuning_rate, **changes) | cost


def unlabelled(run: Run, what: str, tuning_rate: float = RATE, bed: PatchBed = BED, **changes) -> dict[str, float]:
    """Imitate a teacher on whole images without labels: the fine-tuned one's answers, or the masked one's features; fine-tune."""
    student = bed.new_student(run)
    if what == "answers":
        procedure = Distil(student, bed.fine_tuned(run), SoftTargets(TEMPERATURE))
    else:
        procedure = Distil(student, bed.masked(run), alignment(bed, ""))
    cost = learnt(run, bed, procedure, **changes)
    return bed.tuned(run, student, learning_rate=tuning_rate, **changes) | cost
