"""LSSKD: classifiers after every stage tell class and rotation together, and the deep ones teach the shallow ones; none of them stays.

    L = CE(model, y) + sum_k CE(g_k, 4 y + r) + w T^2 sum_{k<K} KL(g_K || g_k) + v sum_{k<K} |f_k - f_K|^2     on images in four rotations

Idea: a network has no teacher but its own last stage. Telling how an image was turned makes every stage learn more of it than
labels ask; the last stage's answer to the joint task is a richer target for the stages below. At inference nothing is added.

Source: "A Layered Self-Supervised Knowledge Distillation Framework for Efficient Multimodal Learning on the Edge", 2025. Only the
abstract could be read and no code is public: which stage teaches which and the weights are open; here the last teaches all, with
T = 3 and v = 0.1 as in "Be Your Own Teacher" (Zhang et al., ICCV 2019), which is the arm `own_teacher`.
Pieces: `LayeredSelfDistillation` of `limbeck.objectives`, `OnViews` of `limbeck.training`, `Rotations` of `limbeck.datasets.augment`.
Deviations: a narrow residual network of three stages on 500 MNIST images. The model's own head sees labels of upright images only; a step of
the method passes four times the images, as the paper's does. The control's label smoothing and every other arm's weight are
chosen on the validation split. One run was made: five seeds on so few images differ by several points from one another, and no
difference between the arms stands out.
"""

from __future__ import annotations

from limbeck.beds.images import MNIST_FEW as BED
from limbeck.datasets.augment import Rotations
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.objectives import CrossEntropy, LayeredSelfDistillation, MixedTargets, Objective
from limbeck.teachers import PastPredictions
from limbeck.training import Distil, OnViews

STAGES = ("layer1", "layer2", "layer3")


def joint(weight: float, features: float, classes: int = 10) -> Objective:
    """Labels for the model, class and rotation for every stage, the last stage for the others."""
    layered = LayeredSelfDistillation(
        STAGES, 4 * classes, "joint_labels", logits_weight=weight, features_weight=features
    )
    return CrossEntropy() + layered


def lsskd(run: Run, weight: float = 1.0, features: float = 0.1, bed=BED, **changes) -> dict[str, float]:
    """The model learns from rotated images with classifiers at every stage; weight and features 0: no transfer between them."""
    return bed.fit(run, OnViews(Distil(bed.new_student(run), None, joint(weight, features)), Rotations()), **changes)


def own_teacher(run: Run, weight: float = 1.0, bed=BED, **changes) -> dict[str, float]:
    """The same without rotations: stages learn labels and the model's own answer (Be Your Own Teacher)."""
    return bed.distil(run, CrossEntropy() + LayeredSelfDistillation(STAGES, logits_weight=weight), **changes)


def past(run: Run, share: float = 0.8, bed=BED, **changes) -> dict[str, float]:
    """Labels mixed with the model's own past predictions (PS-KD)."""
    task = bed.task()
    teacher = PastPredictions(task.size("train"), len(task.classes))
    return bed.distil(run, MixedTargets(share, bed.training.epochs), teacher, **changes)


def labels(run: Run, smoothing: float = 0.0, bed=BED, **changes) -> dict[str, float]:
    """Labels alone."""
    return bed.distil(run, CrossEntropy(smoothing), **changes)


WEIGHTS = {"weight": (0.3, 1.0)}
paper = Paper(
    id=34,
    title="A Layered Self-Supervised Knowledge Distillation Framework for Efficient Multimodal Learning on the Edge",
    claim="Without a teacher and at no cost in inference, rotation-aware classifiers at all stages beat labels, past predictions (PS-KD) "
    "and self-distillation without rotations.",
    composition='OnViews(Distil(student, None, CrossEntropy() + LayeredSelfDistillation(stages, 40, "joint_labels")), Rotations())',
    method=Arm(lsskd, tune=WEIGHTS, about="joint labels at all stages, the last teaches"),
    baseline=Arm(past, tune={"share": (0.4, 0.8)}, about="PS-KD"),
    control=Arm(labels, tune={"smoothing": (0.0, 0.1)}, about="labels alone"),
    others={
        "own_teacher": Arm(own_teacher, tune=WEIGHTS, about="Be Your Own Teacher: no rotations"),
        "untaught": Arm(lsskd, {"weight": 0.0, "features": 0.0}, about="joint labels at all stages, no transfer"),
    },
    comparisons=(
        Comparison(text="against PS-KD"),
        Comparison(against="control", text="against labels alone"),
        Comparison(against="own_teacher", text="what the rotations add"),
        Comparison(against="untaught", decisive=False, text="what the transfer adds"),
    ),
    miniature=Miniature(beds=(BED,), seeds=5, equal=("steps", "samples", "parameters")),
    metric="accuracy",
    left_out="CIFAR-100, Tiny ImageNet, ImageNet; SSKD and HSAKD, which have a teacher; language models.",
)
