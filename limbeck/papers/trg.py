"""TRG: patches of all images of a batch form a graph, and the student's graph becomes the teacher's.

    L = CE + w T^2 KL + a inner + b local + c global
    inner:  mean squared error of softmax(F F^T / sqrt(D)), the patches of one image among each other
    local:  KL of the rows of a nearest-neighbour graph over patches drawn from the whole batch
    global: a student's patch is told from the others by the teacher's patch in its place, temperature falling (coarse to fine)

Idea: relations between whole images miss what patches of different images share; rare classes borrow from frequent ones that way.
Source: Zhang et al., "Knowledge Distillation via Token-level Relationship Graph", 2023. No code was released; read: the abstract and
public notes with the equations, which give neither neighbours, sigma, the number of patches nor the weights.
Pieces: `TokenGraph`, `TokenContrast`, `TokenRelations(loss="maps")`; for comparison `DistanceRelations`, `AngleRelations`.
Deviations: a long-tailed MNIST (14x14, the largest class 50 times the smallest) in place of CIFAR-100 and its long tail; the 16 places of
the last stage of a residual network are the patches, 256 of a batch's 1024 are drawn; sums over patches are means, so the weights are ours. Their sizes were
set by hand so that the terms begin within a factor of ten of each other; every arm with a teacher chooses among four settings
on the validation split. `rare_accuracy` is that of the three rarest classes.
What came out: after these 228 steps TRG is 11 points above KD on average, but seeds differ by as much, and relations of whole images
are as good. The relations across images carry it; those within an image add nothing. This is the only run that was made.
"""

from __future__ import annotations

import dataclasses

from limbeck.beds.images import MNIST_TAIL
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.objectives import (
    AngleRelations,
    CrossEntropy,
    DistanceRelations,
    Objective,
    SoftTargets,
    TokenContrast,
    TokenGraph,
    TokenRelations,
)

BED = dataclasses.replace(
    MNIST_TAIL, training=dataclasses.replace(MNIST_TAIL.training, epochs=12, batch_size=64), expects={}
)
LAYER, FEATURE, TOKENS = "layer3", "pool", 256
INNER, LOCAL, GLOBAL = 30.0, 300.0, 0.1


def objective(weight: float, scale: float, epochs: float, inner: bool = True, graph: bool = True) -> Objective:
    """Labels, soft targets and the token losses, all of them times `scale`."""
    total = CrossEntropy() + weight * SoftTargets(temperature=4.0)
    if inner:
        total = total + scale * INNER * TokenRelations(LAYER, LAYER, heads=1, loss="maps")
    if graph:
        total = total + scale * LOCAL * TokenGraph(LAYER, tokens=TOKENS)
        total = total + scale * GLOBAL * TokenContrast(LAYER, epochs=epochs, tokens=TOKENS)
    return total


def trg(
    run: Run, weight: float = 1.0, scale: float = 1.0, inner: bool = True, graph: bool = True, bed=BED, **changes
) -> dict[str, float]:
    """The whole, or without the relations within an image (inner) or those across images (graph)."""
    epochs = bed.config(**changes).epochs or bed.training.epochs
    return bed.distil(run, objective(weight, scale, epochs, inner, graph), **changes)


def kd(run: Run, weight: float = 1.0, bed=BED, **changes) -> dict[str, float]:
    """Labels and soft targets."""
    return bed.distil(run, CrossEntropy() + weight * SoftTargets(temperature=4.0), **changes)


def rkd(run: Run, weight: float = 1.0, scale: float = 1.0, bed=BED, **changes) -> dict[str, float]:
    """Labels, soft targets, distances and angles between whole images (25 and 50 in the paper, times `scale`)."""
    relations = 25 * DistanceRelations(FEATURE, FEATURE) + 50 * AngleRelations(FEATURE, FEATURE)
    return bed.distil(run, CrossEntropy() + weight * SoftTargets(temperature=4.0) + scale * relations, **changes)


def labels(run: Run, bed=BED, **changes) -> dict[str, float]:
    return bed.distil(run, CrossEntropy(), **changes)


SETTINGS = {"weight": (0.5, 2.0), "scale": (0.1, 1.0)}
paper = Paper(
    id=103,
    title="Knowledge Distillation via Token-level Relationship Graph",
    claim="Relations between patches across images teach more than soft targets and than relations between images, above all on "
    "rare classes.",
    composition="CrossEntropy() + w SoftTargets(4) + a TokenRelations(loss='maps') + b TokenGraph + c TokenContrast, last stage",
    method=Arm(trg, tune=SETTINGS, about="CE + KD + inner + local + global"),
    baseline=Arm(kd, tune={"weight": (0.5, 1.0, 2.0, 4.0)}, about="CE + KD"),
    control=Arm(labels, about="CE, no teacher"),
    others={
        "images": Arm(rkd, tune=SETTINGS, about="CE + KD + RKD (distances and angles of images)"),
        "no_graph": Arm(trg, {"graph": False}, about="without relations across images, untuned"),
        "no_inner": Arm(trg, {"inner": False}, about="without relations within an image, untuned"),
    },
    comparisons=(
        Comparison(text="TRG against KD"),
        Comparison(against="control", text="TRG against labels alone"),
        Comparison(against="images", text="TRG against relations of images"),
        Comparison("rare_accuracy", decisive=False, text="rare classes, against KD"),
        Comparison("rare_accuracy", against="images", decisive=False, text="rare classes, against relations of images"),
        Comparison(against="no_graph", decisive=False, text="with relations across images"),
        Comparison(against="no_inner", decisive=False, text="with relations within an image"),
    ),
    miniature=Miniature(beds=(BED,), seeds=5, equal=("steps", "samples", "parameters")),
    metric="accuracy",
    left_out="CIFAR-100, ImageNet, balanced data, vision transformers, larger batches (the paper: up to 512 help).",
)
