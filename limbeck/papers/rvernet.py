"""RveRNet's distilled transformers: a distillation token that learns a convolutional teacher's hard answers beside the labels.

    L = 1/2 CE(head(class token), y) + 1/2 CE(head(distillation token), argmax teacher(x));   the answer is the mean of both heads

Idea: a transformer that was taught by a convolutional net sees its prior for locality. RveRNet puts two such transformers, one for the region
of interest and one for the rest of the image, under one classifier, and asks what the teacher's prior costs: how the student
stands patches in another order, which a transformer bears better, and objects at another place.

Source: "Knowledge distillation to effectively attain both region-of-interest and global semantics from an image where multiple objects
appear", 2024; the authors' repository fuses ready distilled transformers and runs no distillation. The token is DeiT's (Touvron et al., ICML
2021, section 4).
Pieces: `vit(distilled=True)` of `limbeck.models`, `HardTargets`, `OnSignal`, `SoftTargets` of `limbeck.objectives`, `Translated` and
`PermutedPatches` of `limbeck.datasets.augment`.
Deviations: only the part on distillation is checked, on 500 MNIST images of 14x14 in four patches; the plain transformer has no second
token. One learning rate for all arms, that of the long-tailed transformer (DeiT-LT). One run was made: at four patches and 500 images the token helps no more than labels, and
the disturbances tell the arms apart no better.
"""

from __future__ import annotations

from limbeck.beds.images import MNIST_FEW as BED
from limbeck.datasets.augment import PermutedPatches, Translated
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.models import vit
from limbeck.objectives import CrossEntropy, HardTargets, Objective, OnSignal, SoftTargets

SIZES = {"patch": 7, "depth": 2, "width": 64, "heads": 4}
SCHEDULE = {"optimizer": "adamw", "learning_rate": 2e-3, "weight_decay": 0.05, "epochs": 30}


def trained(run: Run, objective: Objective, distilled: bool, bed, **changes) -> dict[str, float]:
    """Train a small transformer; measure it as it is, on moved images and on images of permuted patches."""
    size = bed.task().height
    sizes = {**SIZES, "size": size, "patch": min(SIZES["patch"], size // 2), "channels": bed.channels}
    student = bed.new_student(run, lambda: vit(**sizes, distilled=distilled))
    found = bed.distil(run, objective, student=student, **(SCHEDULE | changes))
    disturbed = {"moved": Translated(2, 2), "permuted": PermutedPatches(sizes["patch"])}
    return found | {
        f"{name}_accuracy": bed.measure(run, student, change=how)["accuracy"] for name, how in disturbed.items()
    }


def token(run: Run, soft: bool = False, temperature: float = 2.0, bed=BED, **changes) -> dict[str, float]:
    """Labels for the class token, the teacher for the distillation token: its hard answers, or its softened ones."""
    taught = SoftTargets(temperature=temperature) if soft else HardTargets()
    objective = 0.5 * OnSignal("head", CrossEntropy()) + 0.5 * OnSignal("distillation_head", taught)
    return trained(run, objective, True, bed, **changes)


def soft(run: Run, temperature: float = 2.0, bed=BED, **changes) -> dict[str, float]:
    """Labels and soft targets, both for the class token."""
    return trained(run, 0.5 * CrossEntropy() + 0.5 * SoftTargets(temperature=temperature), False, bed, **changes)


def labels(run: Run, bed=BED, **changes) -> dict[str, float]:
    """Labels alone."""
    return trained(run, CrossEntropy(), False, bed, **changes)


paper = Paper(
    id=100,
    title="Knowledge distillation to effectively attain both region-of-interest and global semantics from an image where multiple objects "
    "appear",
    claim="A distillation token that learns a CNN's hard answers makes a small transformer better than labels and than soft targets on its "
    "class token, and less robust to permuted patches.",
    composition='Distil(vit(distilled=True), CNN, 0.5 * OnSignal("head", CrossEntropy()) + 0.5 * OnSignal("distillation_head", '
    "HardTargets()))",
    method=Arm(token, about="distillation token, hard answers"),
    baseline=Arm(soft, tune={"temperature": (2.0, 4.0)}, about="soft targets on the class token"),
    control=Arm(labels, about="labels alone"),
    others={"soft_token": Arm(token, {"soft": True}, about="distillation token, soft targets")},
    comparisons=(
        Comparison(text="against soft targets on the class token"),
        Comparison(against="control", text="against labels alone"),
        Comparison(against="soft_token", decisive=False, text="hard answers against soft ones on the token"),
        Comparison("moved_accuracy", against="control", decisive=False, text="on moved images, against labels alone"),
        Comparison(
            "permuted_accuracy",
            against="control",
            better="lower",
            decisive=False,
            text="worse on permuted patches than labels alone",
        ),
    ),
    miniature=Miniature(beds=(BED,), seeds=5),
    metric="accuracy",
    left_out="The fusion of two transformers, segmentation of the region of interest, food images, ImageNet-trained backbones.",
)
