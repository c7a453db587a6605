"""TAID: the target moves from the student's own distribution to the teacher's while the student learns.

Idea: a large teacher asks for modes that a small student cannot hold: forward KL then averages over them, reverse KL drops most. TAID's
target lies between the two models' logits; its share of the teacher grows with the steps, faster while the loss falls, and ends at one.

    L = mean KL(p_t || q),   p_t = softmax((1 - t) z_s + t z_t) without gradient,   t <- max(line, t + rate sigmoid(m) (1 - t))

Source: Shing et al., "TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge Transfer in Language Models", ICLR
2025, section 3, algorithm 1. The authors' loss is the cross-entropy with p_t (the same gradient), and that value drives their t; here
the divergence does, as in the algorithm (`InterpolatedTargets(progress="cross_entropy")` is the other).
Pieces: `InterpolatedTargets`, `SoftTargets`, `ReverseKL`, `JensenShannon`, `SkewKL` of `limbeck.objectives`.
Miniature: characters of Shakespeare. A student of one layer, width 64, first learns the text for 150 steps without a teacher (the paper
distils pre-trained students; shared by all arms of a seed), then 150 steps from four layers of width 128. No arm sees labels then,
except `labels`. Held-out loss in nats per character.
Deviations: the rate is chosen from values some hundred times the paper's 5e-4, in proportion to the shorter run: at 0.01 and below t
never leaves its line (a pilot with seed 1000 on the validation split, from untrained students: the same loss to all digits).
One run was made for the verdict: the moving target beats reverse KL, Jensen-Shannon, skew KL, labels and its own linear form, and ties
with KL, which a student of this size bears from the first step.
"""

from __future__ import annotations

from torch import nn

from limbeck.beds.language import CHARACTERS, LanguageBed
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.objectives import (
    CrossEntropy,
    InterpolatedTargets,
    JensenShannon,
    Objective,
    ReverseKL,
    SkewKL,
    SoftTargets,
)


def objective(kind: str, temperature: float, rate: float) -> Objective:
    """What an arm minimizes."""
    if kind == "interpolated":
        return InterpolatedTargets(rate=rate)
    if kind == "labels":
        return CrossEntropy()
    kinds = {"kl": SoftTargets, "reverse": ReverseKL, "jensen_shannon": JensenShannon, "skew": SkewKL}
    return kinds[kind](temperature=temperature)


def begun(run: Run, bed: LanguageBed, steps: int) -> nn.Module:
    """The seed's student after some steps on the text alone, made once for all arms."""
    config = bed.training(steps)
    key = {"bed": bed.digest(), "what": "student", "training": config.identity(), "seed": run.seed, "version": 1}
    return run.trained(key, lambda: bed.student(run), lambda model: bed.fit(run, model, steps=steps, counted=False))


def distil(
    run: Run,
    kind: str,
    temperature: float = 1.0,
    rate: float = 0.0,
    steps: int = 150,
    before: int = 150,
    bed: LanguageBed = CHARACTERS,
) -> dict[str, float]:
    """Go on from the seed's student with one of the objectives."""
    student, made = bed.student(run), objective(kind, temperature, rate)
    student.load_state_dict(begun(run, bed, before).state_dict())
    teacher = bed.teacher(run) if made.reads.teacher else None
    return bed.measure(run, bed.fit(run, student, made, teacher, steps=steps))


paper = Paper(
    id=190,
    title="TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge Transfer in Language Models",
    claim="A target that moves from student to teacher teaches a small language model more than KL, reverse KL, Jensen-Shannon or skew KL.",
    composition="Distil(student, teacher, InterpolatedTargets(start=0.4, end=1.0, rate))",
    method=Arm(distil, {"kind": "interpolated"}, tune={"rate": (0.03, 0.2)}, about="moving target, adaptive"),
    baseline=Arm(distil, {"kind": "kl"}, tune={"temperature": (1.0, 2.0)}, about="KL"),
    control=Arm(distil, {"kind": "interpolated", "rate": 0.0}, about="moving target, linear in time"),
    others={
        "reverse": Arm(distil, {"kind": "reverse"}, about="reverse KL"),
        "jensen_shannon": Arm(distil, {"kind": "jensen_shannon"}, about="Jensen-Shannon"),
        "skew": Arm(distil, {"kind": "skew"}, about="skew KL, 0.1"),
        "labels": Arm(distil, {"kind": "labels"}, about="the text alone"),
    },
    comparisons=(
        Comparison(text="TAID against KL"),
        Comparison(against="control", text="adaptive against linear"),
        Comparison(against="reverse", text="against reverse KL"),
        Comparison(against="jensen_shannon", text="against Jensen-Shannon"),
        Comparison(against="skew", text="against skew KL"),
        Comparison(against="labels", decisive=False, text="against the text alone"),
    ),
    miniature=Miniature(beds=(CHARACTERS,), seeds=3),
    metric="loss",
    better="lower",
    left_out="instruction tuning, models of billions of parameters, vision; teachers of several sizes.",
)
