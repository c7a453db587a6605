"""FerKD: labels that a teacher wrote down for random regions of images, trusted by how sure it was of each.

    L = -sum_i a_i log s_i over the kept regions;   a: the teacher's answer if sure enough, the softened label if hardly, else dropped

Idea: a random region may show the object, its context or nothing. A teacher's answer to a region is stored once and read in training,
so no teacher runs; answers that are hardly sure belong to context, where the label says more; the surest and the least sure
regions teach nothing.

Source: Shen, "FerKD: Surgical Label Adaptation for Efficient Distillation", ICCV 2023; the stored labels are those of FKD (Shen and Xing, ECCV
2022). No code of the calibration is public; thresholds are chosen on the validation split.
Pieces: `CalibratedTargets` of `limbeck.objectives`, `build_cache` of `limbeck.teachers` with five of ten classes per answer, random
regions of `ImageClassification`.
Deviations: 500 MNIST images of 14x14, regions of a fifth of the area or more, one per image and epoch. `bytes` of the stored
labels are in the ledger. SelfMix (regions of one image pasted into each other) is left out.
What came out: stored answers, none dropped or replaced, beat the labels by 6.6 points; calibrating them costs 3.5 of those. This teacher knows regions of
digits well, so that what the thresholds take away taught something.
"""

from __future__ import annotations

import tempfile

from limbeck.beds.images import MNIST_REGIONS as BED
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.objectives import CalibratedTargets, CrossEntropy, Objective, SoftTargets
from limbeck.teachers import FrozenTeacher, build_cache

KEPT = 5  # classes stored of each answer


def stored(run: Run, objective: Objective, bed, **changes) -> dict[str, float]:
    """Store the teacher's answers to all regions that training will see, then train from them."""
    task, config, teacher = bed.task(), bed.config(**changes), FrozenTeacher(bed.trained_teacher(run))
    passes = -(-config.total_steps(task.size("train")) // config.steps_per_epoch(task.size("train")))
    with tempfile.TemporaryDirectory() as folder:
        views = {"passes": passes, "seed": run.seed, "batch_size": config.batch_size, "augment": config.augment}
        cache = build_cache(teacher, task, folder, top_k=KEPT, progress=False, **views)
        run.record(bytes=cache.bytes)
        return bed.distil(run, objective, cache, **changes)


def calibrated(run: Run, middle: float = 0.5, high: float = 1.0, bed=BED, **changes) -> dict[str, float]:
    """Stored answers, calibrated."""
    return stored(run, CalibratedTargets(min(0.2, middle), middle, high), bed, **changes)


def plain(run: Run, temperature: float = 1.0, label_share: float = 0.0, bed=BED, **changes) -> dict[str, float]:
    """Stored answers as they are (FKD), with the labels where asked."""
    objective = (1 - label_share) * SoftTargets(temperature=temperature) + label_share * CrossEntropy()
    return stored(run, objective, bed, **changes)


def labels(run: Run, smoothing: float = 0.0, bed=BED, **changes) -> dict[str, float]:
    """The labels alone, on the same regions."""
    return bed.distil(run, CrossEntropy(smoothing), **changes)


paper = Paper(
    id=112,
    title="FerKD: Surgical Label Adaptation for Efficient Distillation",
    claim="Labels stored for random regions teach more when hardly sure answers are replaced by softened labels and the extremes dropped.",
    composition="Distil(student, build_cache(teacher, task, top_k=5), CalibratedTargets(low, middle, high))",
    method=Arm(calibrated, tune={"middle": (0.3, 0.5), "high": (0.999, 1.0)}, about="stored answers, calibrated"),
    baseline=Arm(plain, tune={"temperature": (1.0, 2.0), "label_share": (0.0, 0.2)}, about="stored answers (FKD)"),
    control=Arm(labels, tune={"smoothing": (0.0, 0.1)}, about="labels alone"),
    comparisons=(
        Comparison(text="calibrated against plain stored answers"),
        Comparison(against="control", text="calibrated stored answers against labels"),
        Comparison(method="baseline", against="control", decisive=False, text="plain stored answers against labels"),
    ),
    miniature=Miniature(beds=(BED,), seeds=5, equal=("steps", "samples", "parameters")),
    metric="accuracy",
    left_out="ImageNet, several regions per loaded image, SelfMix, the time that stored answers save.",
)
