"""MDCS: three experts for frequent, all and rare classes, each held to what it says itself of an easier view.

    L = sum_m CE(z_m + s_m log n) over both views + w min(e / ramp, 1) sum_m KL(p_m(weak) || p_m(strong)) where m is right on weak

Idea: on a long tail one classifier cannot serve both ends. Cross-entropy under another class prior makes each expert (s = -0.5, 1, 2.5)
favour other classes; consistency between views, taught only by what the expert gets right, lowers its variance. The answer is the
mean of the experts' logits.

Source: Zhao et al., "MDCS: More Diverse Experts with Consistency Self-distillation for Long-tailed Recognition", ICCV 2023; the authors'
code was read and has these formulas, with w = 0.6 and a ramp of 20 epochs out of 400.
Pieces: `OnSignal`, `PriorAdjusted`, `WhereCorrect`, `Scheduled` of `limbeck.objectives`, `TwoViews` of `limbeck.training`,
`StrongView` of `limbeck.datasets.augment`, `branched_resnet` of `limbeck.models`, the long tail of the image beds.
Deviations: MNIST of 14x14 with class sizes from 441 to 9; the strong view changes contrast and brightness and cuts a square out; the
ramp is a tenth of the run. Every arm has the same three-headed network and sees both views. The test split is balanced, so accuracy
is balanced accuracy.
What came out: far better than three plain experts (10.6 points, rare classes 34.7), not than three experts with logit adjustment, and 2.3 points
worse than the diversity loss alone: so short a run gains nothing by the consistency.
"""

from __future__ import annotations

from limbeck.beds.images import MNIST_TAIL as BED
from limbeck.datasets.augment import StrongView
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.models import branched_resnet
from limbeck.objectives import (
    CrossEntropy,
    Objective,
    OnSignal,
    PriorAdjusted,
    Scheduled,
    SoftTargets,
    Sum,
    WhereCorrect,
)
from limbeck.training import TwoViews

PRIORS = (-0.5, 1.0, 2.5)


def diverse(strengths: tuple[float, ...], counts: tuple[int, ...]) -> Objective:
    """Every expert's cross-entropy under its own class prior."""
    heads = (OnSignal(f"heads.{m}", PriorAdjusted(CrossEntropy(), counts, s)) for m, s in enumerate(strengths))
    return Sum(tuple((head, 1.0) for head in heads))


def consistent(strengths: tuple[float, ...], counts: tuple[int, ...], weight: float, ramp: float) -> Objective:
    """Every expert's strong view learns from its weak view where that is right."""
    held = (PriorAdjusted(WhereCorrect(SoftTargets(temperature=1.0)), counts, s) for s in strengths)
    heads = (Scheduled(OnSignal(f"heads.{m}", one, f"heads.{m}"), ramp=ramp) for m, one in enumerate(held))
    return Sum(tuple((head, weight) for head in heads))


def experts(run: Run, strengths=PRIORS, weight: float = 0.0, epochs: float | None = None, bed=BED, **changes):
    """Three experts with these priors; weight 0: no consistency."""
    epochs = epochs or bed.training.epochs
    counts = bed.task().class_counts()
    make = lambda: branched_resnet(bed.student.depth, len(strengths), channels=bed.channels, width=bed.student.width)  # noqa: E731
    consistency = consistent(strengths, counts, weight, epochs / 10) if weight else None
    procedure = TwoViews(bed.new_student(run, make), diverse(strengths, counts), consistency, StrongView())
    return bed.fit(run, procedure, **({"epochs": epochs} | changes))


def adjusted(run: Run, strength: float = 1.0, **more) -> dict[str, float]:
    """Three heads with the same adjustment of their logits: 0 is plain cross-entropy."""
    return experts(run, (strength,) * 3, **more)


WEIGHTS = {"weight": (0.3, 0.6)}
paper = Paper(
    id=221,
    title="MDCS: More Diverse Experts with Consistency Self-distillation for Long-tailed Recognition",
    claim="On a long tail, experts made diverse by class priors and consistent by self-distillation beat experts that are neither.",
    composition="TwoViews(branched_resnet(heads=3), sum of OnSignal(head, PriorAdjusted(CrossEntropy())), sum of OnSignal(head, "
    "PriorAdjusted(WhereCorrect(SoftTargets(1)))), StrongView())",
    method=Arm(experts, tune=WEIGHTS, about="diversity and consistency"),
    baseline=Arm(adjusted, tune={"strength": (0.5, 1.0)}, about="three heads, one logit adjustment"),
    control=Arm(adjusted, {"strength": 0.0}, about="three heads, cross-entropy"),
    others={
        "diversity": Arm(experts, about="diversity alone"),
        "consistency": Arm(adjusted, {"strength": 0.0}, WEIGHTS, about="cross-entropy and consistency"),
    },
    comparisons=(
        Comparison(text="against logit adjustment"),
        Comparison(against="control", text="against cross-entropy"),
        Comparison(against="diversity", text="what consistency adds"),
        Comparison(against="consistency", text="what diversity adds"),
        Comparison("rare_accuracy", against="control", decisive=False, text="the rarest third, against cross-entropy"),
        Comparison("rare_accuracy", decisive=False, text="the rarest third, against logit adjustment"),
    ),
    miniature=Miniature(beds=(BED,), seeds=5, equal=("steps", "samples", "parameters")),
    metric="accuracy",
    left_out="CIFAR-LT, ImageNet-LT, Places-LT, iNaturalist; RIDE, SADE and other systems of experts; RandAugment.",
)
