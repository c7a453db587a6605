"""PS-KD: the student's own predictions of the last epoch soften its labels, more so as training goes on.

    L = -sum_i ((1 - a_e) y_i + a_e p_i) log s_i,   a_e = 0.8 (e + 1) / E,   p: what the model said of this example an epoch before

Idea: a model that was wrong about an example keeps part of that doubt in its target, so easy examples stop pulling and hard
ones go on; the targets get better as the model does. No teacher, no weight to choose, no second forward pass.

Source: Kim et al., "Self-Knowledge Distillation with Progressive Refinement of Targets", ICCV 2021, eq. 3 and 8. The text speaks of
the model at the end of the last epoch; the authors' code keeps what was predicted during it, on that epoch's view and weights. The
arm `method` is the second, which is free; `snapshot` is the first.
Run beside the authors' code on random inputs, the loss agrees to 1e-7, value and gradient.
Pieces: `MixedTargets` of `limbeck.objectives`, `PastPredictions` and `EpochSnapshot` of `limbeck.teachers`.
Deviations: a small residual network on 1000 CIFAR-10 images of 16x16 for 40 epochs. The share is the paper's in every arm;
nothing is tuned, and this is the only setting that was tried. Calibration and likelihood gain much there; accuracy does not.
"""

from __future__ import annotations

from limbeck.beds.images import CIFAR10_FEW as BED
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.objectives import CrossEntropy, MixedTargets
from limbeck.teachers import EpochSnapshot, PastPredictions


def past(run: Run, share: float = 0.8, growing: bool = True, bed=BED, **changes) -> dict[str, float]:
    """Targets mixed with what the student predicted for the example an epoch before."""
    task, config = bed.task(), bed.config(**changes)
    teacher = PastPredictions(task.size("train"), len(task.classes))
    return bed.distil(run, MixedTargets(share, _epochs(bed, config) if growing else None), teacher, **changes)


def snapshot(run: Run, share: float = 0.8, bed=BED, **changes) -> dict[str, float]:
    """The same with predictions of the weights at the end of the last epoch, on the view at hand."""
    return bed.distil(run, MixedTargets(share, _epochs(bed, bed.config(**changes))), EpochSnapshot(), **changes)


def labels(run: Run, smoothing: float = 0.0, bed=BED, **changes) -> dict[str, float]:
    """Cross-entropy with the labels, smoothed where asked."""
    return bed.distil(run, CrossEntropy(smoothing), **changes)


def _epochs(bed, config) -> float:
    """Epochs of a run, also of one that is told in steps."""
    examples = bed.task().size("train")
    return config.total_steps(examples) / config.steps_per_epoch(examples)


paper = Paper(
    id=20,
    title="Self-Knowledge Distillation with Progressive Refinement of Targets",
    claim="A model that refines its own targets with its past predictions is more accurate and better calibrated than one trained "
    "on the labels.",
    composition="Distil(student, PastPredictions(examples, classes), MixedTargets(share=0.8, epochs=E))",
    method=Arm(past, about="labels and past predictions, share growing to 0.8"),
    baseline=Arm(labels, about="labels"),
    control=Arm(labels, {"smoothing": 0.1}, about="labels smoothed by 0.1"),
    others={
        "snapshot": Arm(snapshot, about="labels and the last epoch's weights"),
        "constant": Arm(past, {"growing": False}, about="share 0.8 from the second epoch on"),
    },
    comparisons=(
        Comparison(text="accuracy against labels"),
        Comparison("calibration_error", better="lower", text="calibration against labels"),
        Comparison(against="control", decisive=False, text="accuracy against label smoothing"),
        Comparison(
            "calibration_error", against="control", better="lower", decisive=False, text="calibration against smoothing"
        ),
        Comparison("loss", better="lower", decisive=False, text="likelihood against labels"),
        Comparison(against="snapshot", decisive=False, text="past predictions against past weights"),
        Comparison(against="constant", decisive=False, text="growing share against a constant one"),
    ),
    miniature=Miniature(beds=(BED,), seeds=5),
    metric="accuracy",
    left_out="Object detection and translation; ordinal ranking of confidence (AURC); CS-KD and TF-KD as baselines.",
)
