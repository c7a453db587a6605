"""ND loss (KD++): a student's features point where the teacher's mean of their class points, and are as long as the teacher's.

    L = CE + k T^2 KL + n mean over examples of 1 - <s, e_y> / max(|s|, |t|),   e_y: direction of the teacher's mean feature of class y

Idea: the teacher's class means are a strong classifier by themselves, so they are better targets than the features of single
images; and features of students are shorter than those of teachers, which costs confidence. While s is shorter than t the
denominator stands still, so length is rewarded together with direction.
Source: Wang et al., "Improving Knowledge Distillation via Regularizing Feature Norm and Direction", 2023; the authors' public code was
read (`NormDirection` agrees with it). It keeps KL's weight low for 20 of 240 epochs; here all weights are constant.
Pieces: `NormDirection` of `limbeck.objectives`, `ClassMeans` and `class_means` of `limbeck.teachers`.
Deviations: a small residual network on 1000 CIFAR-10 images of 16x16; the teacher saw 20000, and its class means are over the 1000
the student has. A linear projector between the widths, as in the paper where they differ (theirs adds batch normalization and dropout).
Every arm with a teacher chooses among four settings on the validation split. `norm` is |s| / |t| and `cosine` <s, e_y> / |s| on
the measured split, of projected features. `cosine`: the direction alone, `NormDirection(norm=False)`.
What came out: KD gains a point and a half, and the direction alone gains as much; the length makes features longer, as it should, even
longer than the teacher's, and changes nothing else. This is the only bed and grid that was tried.
"""

from __future__ import annotations

import dataclasses

import torch
from torch.nn import functional as F

from limbeck.beds.images import CIFAR10_FEW
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.measure.latency import evaluating
from limbeck.objectives import CrossEntropy, NormDirection, Objective, SoftTargets
from limbeck.objectives.connectors import pool, project
from limbeck.signals import capture
from limbeck.teachers import ClassMeans, FrozenTeacher, class_means
from limbeck.training import Distil

BED = dataclasses.replace(CIFAR10_FEW, training=dataclasses.replace(CIFAR10_FEW.training, epochs=25))
FEATURE = "pool"  # what the classifier reads


def geometry(run: Run, procedure: Distil, teacher: ClassMeans, bed) -> dict[str, float]:
    """Mean length of the student's features over the teacher's, and their mean cosine to the class mean's direction."""
    projector = next((m for n, m in procedure.connectors.items() if n.endswith("projector")), None)
    lengths, cosines, count = 0.0, 0.0, 0
    with torch.no_grad(), evaluating(procedure.student):
        for batch in bed.task().batches(run.split, 256):
            own = project(projector, pool(capture(procedure.student, batch, {FEATURE})[FEATURE], batch))
            theirs = teacher.signals(batch, frozenset({FEATURE, "class_mean"}))
            lengths += float((own.norm(dim=1) / pool(theirs[FEATURE], batch).norm(dim=1)).sum())
            cosines += float(F.cosine_similarity(own, theirs["class_mean"]).sum())
            count += len(own)
    return {"norm": lengths / count, "cosine": cosines / count}


def train(run: Run, loss: Objective, bed, **changes) -> dict[str, float]:
    """Train the bed's student with a teacher that knows its class means."""
    model = bed.trained_teacher(run)
    teacher = ClassMeans(FrozenTeacher(model), class_means(model, bed.task(), FEATURE))
    procedure = Distil(bed.new_student(run), teacher, loss)
    found = bed.fit(run, procedure, **changes)
    return found | (geometry(run, procedure, teacher, bed) if procedure.connectors else {})


def plain(weight: float) -> Objective:
    return CrossEntropy() + weight * SoftTargets(temperature=4.0)


def nd(
    run: Run, weight: float = 1.0, direction: float = 2.0, norm: bool = True, bed=BED, **changes
) -> dict[str, float]:
    """Labels, soft targets and the ND loss, or with norm=False the cosine distance to the class mean."""
    return train(run, plain(weight) + direction * NormDirection(FEATURE, norm=norm), bed, **changes)


def kd(run: Run, weight: float = 1.0, bed=BED, **changes) -> dict[str, float]:
    """Labels and soft targets."""
    return train(run, plain(weight), bed, **changes)


def labels(run: Run, bed=BED, **changes) -> dict[str, float]:
    return bed.distil(run, CrossEntropy(), **changes)


SETTINGS = {"weight": (1.0, 4.0), "direction": (0.5, 2.0)}
paper = Paper(
    id=16,
    title="Improving Knowledge Distillation via Regularizing Feature Norm and Direction",
    claim="Pulling features to the direction of the teacher's class means and to the teacher's length makes distillation better.",
    composition='Distil(student, ClassMeans(teacher, means), CrossEntropy() + k * SoftTargets(4) + n * NormDirection("pool"))',
    method=Arm(nd, tune=SETTINGS, about="CE + KD + ND loss"),
    baseline=Arm(kd, tune={"weight": (0.5, 1.0, 2.0, 4.0)}, about="CE + KD"),
    control=Arm(labels, about="CE, no teacher"),
    others={"cosine": Arm(nd, {"norm": False}, SETTINGS, about="CE + KD + direction alone")},
    comparisons=(
        Comparison(text="KD with ND loss against KD"),
        Comparison(against="control", text="KD with ND loss against labels alone"),
        Comparison(against="cosine", decisive=False, text="ND loss against the direction alone"),
        Comparison("norm", against="cosine", decisive=False, text="longer features than with the direction alone"),
        Comparison(
            "cosine", against="cosine", decisive=False, text="closer to the class mean than with direction alone"
        ),
        Comparison(method="cosine", against="baseline", decisive=False, text="the direction alone against KD"),
    ),
    miniature=Miniature(beds=(BED,), seeds=5, equal=("steps", "samples", "parameters")),
    metric="accuracy",
    left_out="CIFAR-100, ImageNet, COCO; ND loss on top of DKD, ReviewKD and DIST; the SIFN baseline for norms; warm-up of KL.",
)
