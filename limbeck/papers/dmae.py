"""DMAE: while a small vision transformer learns to draw hidden patches, it imitates a middle layer of a larger one that learnt so before.

    L = mean over hidden patches (drawn - pixels)^2 + w mean over visible tokens of |g(h_s) / |g(h_s)| - h_t / |h_t||_1 / D

Both see the same few patches, and the teacher runs up to the layer that is read (three quarters of its depth) and no further, so that
distilling costs little more than masked pre-training alone. Then the student is fine-tuned as usual.
Source: Bai et al., "Masked Autoencoders Enable Efficient Knowledge Distillers", CVPR 2023, sections 3 and 4 (w = 1, g one linear layer);
the authors' public code was read: the scaling to length 1 is there only, and it runs the whole teacher, whose end it does not use.
Pieces: `DistilMaskedImages` of `limbeck.training`, `Hint(loss="l1", normalize=True)` of `limbeck.objectives`, a partial `FrozenTeacher`.
Deviations: MNIST of 12x12 in 16 patches, a masked teacher of 6 layers, a student of 3 layers and two thirds of the width, 600 steps on
5000 images without labels, then 500 labels. Aligned are the fourth of six and the second of three layers. Pixels are normalized patch by patch.
Baseline: the student is a masked autoencoder for as many steps, and imitates the teacher, fine-tuned on the same labels, while it is
fine-tuned itself. Control: the same without a teacher. `answers` is beyond the paper, which has labels for all images: the fine-tuned teacher
answers for the images without labels. 90 and 95 % hide 14 and 15 of 16 patches. `step_seconds` is the time of a step of distillation and its
gradient, on one thread. The bed's first weights were set by what an untaught student and the teacher reach (0.84 and 0.87 on validation).
What came out: aligned or not, or with the tuned teacher in fine-tuning, the student comes to 0.86, as its teacher itself does after the same
500 labels: two points above an untaught student are all that masked images give here, and there is little to hand on. Hiding 90 or 95 % costs
nothing. Where images without labels are many, the fine-tuned teacher's answers on them are 4.5 points better. Times were taken on a busy machine.
"""

from __future__ import annotations

import statistics

from limbeck.beds.patches import UNIT_PATCHES as BED
from limbeck.beds.patches import PatchBed
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.measure.latency import time_runs
from limbeck.objectives import CrossEntropy, Hint, Objective, SoftTargets
from limbeck.training import Distil, DistilMaskedImages, MaskedImages, Procedure

STEPS = 600  # without labels
TEMPERATURE = 2.0


def alignment(bed: PatchBed) -> Objective:
    """The visible tokens after three quarters of the blocks of either side, rounded down to whole blocks."""
    own, target = (f"model.blocks.{depth * 3 // 4 - 1}" for depth, _ in (bed.student, bed.teacher))
    return Hint(own, target, loss="l1", normalize=True, projector="linear")


def learn(run: Run, bed: PatchBed, procedure: Procedure, steps: int) -> dict[str, float]:
    """Train on the images without labels, then time a step and its gradient, without the optimizer."""
    run.train(procedure, bed.task(), bed.config(steps))
    batch = next(iter(bed.task().batches("train", bed.batch_size)))

    def step() -> None:
        procedure.step(batch, None)["main"].value.backward()

    return {"step_seconds": statistics.median(time_runs(step, runs=20, warmup=3))}


def masked(
    run: Run, weight: float = 0.0, ratio: float = 0.75, bed: PatchBed = BED, steps: int = STEPS, **tuning
) -> dict[str, float]:
    """Draw hidden patches, aligned with the masked teacher where the weight is not 0; fine-tune and measure."""
    student = bed.new_student(run)
    if weight:
        procedure = DistilMaskedImages(student, bed.masked(run), weight * alignment(bed), ratio=ratio)
    else:
        procedure = MaskedImages(student, ratio)
    cost = learn(run, bed, procedure, steps)
    return bed.tuned(run, student, **tuning) | cost


def imitated(run: Run, share: float, bed: PatchBed = BED, steps: int = STEPS, **tuning) -> dict[str, float]:
    """Draw hidden patches alone; imitate the fine-tuned teacher while fine-tuning, and measure."""
    student = bed.new_student(run)
    cost = learn(run, bed, MaskedImages(student), steps)
    loss = (1 - share) * CrossEntropy() + share * SoftTargets(TEMPERATURE)
    return bed.tuned(run, student, loss, bed.fine_tuned(run), **tuning) | cost


def answered(run: Run, bed: PatchBed = BED, steps: int = STEPS, **tuning) -> dict[str, float]:
    """Imitate the fine-tuned teacher on whole images without labels; fine-tune and measure."""
    student = bed.new_student(run)
    cost = learn(run, bed, Distil(student, bed.fine_tuned(run), SoftTargets(TEMPERATURE)), steps)
    return bed.tuned(run, student, **tuning) | cost


WEIGHTS = {"weight": (1.0, 10.0)}
paper = Paper(
    id=194,
    title="Masked Autoencoders Enable Efficient Knowledge Distillers",
    claim="Aligning a middle layer on visible patches while pre-training beats masked pre-training alone and distilling the fine-tuned teacher.",
    composition="DistilMaskedImages(Hint(l1, normalize, linear)) on images without labels, then fine-tuning",
    method=Arm(masked, tune=WEIGHTS, about="aligned with the masked teacher, 75 % hidden"),
    baseline=Arm(imitated, tune={"share": (0.5, 0.9)}, about="masked alone; the fine-tuned teacher while fine-tuning"),
    control=Arm(masked, about="masked alone, no teacher"),
    others={
        "ninety": Arm(masked, {"ratio": 0.9}, WEIGHTS, "aligned, 90 % hidden"),
        "ninety_five": Arm(masked, {"ratio": 0.95}, WEIGHTS, "aligned, 95 % hidden"),
        "answers": Arm(answered, about="the fine-tuned teacher's answers on whole images without labels"),
    },
    comparisons=(
        Comparison(text="better than distilling the fine-tuned teacher"),
        Comparison(against="control", text="better than masked pre-training alone"),
        Comparison(method="ninety", against="method", margin=0.01, decisive=False, text="90 % costs at most a point"),
        Comparison(method="ninety_five", against="method", margin=0.02, decisive=False, text="95 % costs at most two"),
        Comparison(against="answers", decisive=False, text="better than the teacher's answers without labels"),
        Comparison(
            "step_seconds", "ninety_five", "method", "lower", decisive=False, text="a step with 95 % hidden is quicker"
        ),
    ),
    miniature=Miniature(beds=(BED,), seeds=3, equal=("steps", "samples", "parameters")),
    metric="accuracy",
    left_out="ImageNet, transfer to other tasks, projectors of more layers, several aligned layers, targets that mix pixels and predictions.",
)
