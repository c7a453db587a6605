"""OFA-KD: a teacher of another architecture teaches every stage of the student, in logit space.

Layers of a transformer and of a convolutional network look different, so imitating them misleads. A branch turns each stage of
the student into logits, which mean the same in every architecture, and learns from the teacher's final output.

    L = CE + E(head) + sum over stages E(branch),     E = -((1 + t_y)^gamma - 1) log s_y - sum_{i != y} t_i log s_i

Source: Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation", NeurIPS 2023,
section 3 and eq. 5. As in the authors' code the label's cross-entropy counts once, at the head; as in the equation gamma
raises the true class only (the code raises all, which `EnhancedTargets(raised="all")` offers).
Run beside the authors' code on random inputs, `raised="all"` agrees with it to 1e-7, value and gradient.
Pieces: `EnhancedTargets`, `AtExit`, `SoftTargets`, `DecoupledKD`, `Hint` of `limbeck.objectives`.
Deviations: a vision transformer with 4 patches, trained on 5000 MNIST images of 14x14, teaches a narrow residual network on 500;
three stages instead of four; branches normalize each example.
What came out: at the paper's temperature of 1 this teacher, sure of nearly every digit, says little more than the label, and plain
distillation at temperature 4 is better by two points; at temperature 1 it was as good as the exits on the validation split. Hints
across the two families help no more than none.
"""

from __future__ import annotations

from torch import nn

from limbeck.beds.images import MNIST_FEW as BED
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.models import vit
from limbeck.objectives import AtExit, CrossEntropy, DecoupledKD, EnhancedTargets, Hint, Objective, SoftTargets

TEACHER = {"patch": 7, "depth": 2, "width": 64, "heads": 4}
STAGES = ("layer1", "layer2", "layer3")


def transformer(run: Run, bed) -> nn.Module:
    """The teacher: a vision transformer, trained once with labels alone."""
    size = bed.task().height
    settings = {
        **TEACHER,
        "size": size,
        "patch": min(TEACHER["patch"], size // 2),
        "channels": bed.channels,
        "dropout": 0.1,
    }
    return bed.trained_teacher(
        run,
        lambda: vit(**settings),
        {"vit": settings},
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=0.05,
        epochs=20,
    )


def objective(gamma: float) -> Objective:
    """CE + E at the head and at every stage; a branch has as many reductions as there are stages after its own."""
    enhanced = EnhancedTargets(gamma, label=False)
    total = CrossEntropy() + enhanced
    for at, stage in enumerate(STAGES):
        total = total + AtExit(stage, enhanced, depth=len(STAGES) - 1 - at)
    return total


def distil(run: Run, loss: Objective, bed, **changes) -> dict[str, float]:
    return bed.distil(run, loss, transformer(run, bed), **changes)


def ofa(run: Run, gamma: float = 1.2, bed=BED, **changes) -> dict[str, float]:
    return distil(run, objective(gamma), bed, **changes)


def kd(run: Run, temperature: float = 4.0, bed=BED, **changes) -> dict[str, float]:
    return distil(run, CrossEntropy() + SoftTargets(temperature), bed, **changes)


def dkd(run: Run, beta: float = 2.0, bed=BED, **changes) -> dict[str, float]:
    return distil(run, CrossEntropy() + DecoupledKD(1.0, beta, 4.0), bed, **changes)


def hints(run: Run, weight: float = 1.0, bed=BED, **changes) -> dict[str, float]:
    """FitNets: the student's last stage imitates the transformer's last block, beside the labels."""
    return distil(run, CrossEntropy() + weight * Hint("layer3", "blocks.1"), bed, **changes)


def labels(run: Run, bed=BED, **changes) -> dict[str, float]:
    return bed.distil(run, CrossEntropy(), **changes)


paper = Paper(
    id=12,
    title="One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation",
    claim="A convolutional student learns more from a transformer through exits with enhanced targets than by KD, DKD or hints.",
    composition="CrossEntropy() + EnhancedTargets(gamma) + sum of AtExit(stage, EnhancedTargets(gamma)), teacher a ViT",
    metric="accuracy",
    method=Arm(ofa, tune={"gamma": (1.0, 1.2, 1.5)}, about="exits at three stages, targets enhanced"),
    baseline=Arm(kd, tune={"temperature": (1.0, 2.0, 4.0)}, about="CE + KD"),
    control=Arm(labels, about="CE, no teacher"),
    others={
        "decoupled": Arm(dkd, tune={"beta": (1.0, 2.0, 8.0)}, about="CE + DKD"),
        "hints": Arm(hints, tune={"weight": (0.1, 1.0, 10.0)}, about="CE + hint (FitNets)"),
    },
    comparisons=(
        Comparison(text="better than KD"),
        Comparison(against="control", text="better than labels alone"),
        Comparison(against="decoupled", text="better than DKD"),
        Comparison(against="hints", text="better than hints"),
        Comparison(method="hints", against="control", decisive=False, text="hints across architectures against none"),
    ),
    miniature=Miniature(beds=(BED,), seeds=5, equal=("steps", "samples", "parameters")),
    left_out="CIFAR-100, ImageNet; MLP teachers; transformer students (the exits for tokens are there and tested); CRD, OFD, RKD, DIST.",
)
