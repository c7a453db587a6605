"""Distiller: which part of a distillation pipeline matters, and MI-alpha, an objective for hidden states that learns its critic.

    L = CE + KL(teacher || student) + w D(h_s, h_t),   D: -I_alpha(h_s; h_t), or squared error, cosine, InfoNCE

I_alpha is a lower bound on the mutual information of student and teacher states, estimated within the batch by a small critic
that is trained along; alpha trades its bias for its variance (see `limbeck.objectives.MutualInformation`).
Source: He et al., "Distiller: A Systematic Study of Model Distillation Methods in Natural Language Processing", 2021. The authors'
code was read: its bound is the formula; its comment on alpha names the two ends the wrong way round.
Run beside the authors' code on random scores, the bound and its gradient agree to 5e-7 at alpha 0.1, 0.5 and 0.9.

Claims re-checked: hidden states distilled by MI-alpha beat the other objectives for them, and logits alone. A 2-layer student of
half the width learns from 600 labelled texts and from a 4-layer teacher that was trained on all 6,080 of AG News. Last layers only,
states averaged over tokens; each objective chooses its weight among three on the validation split. InfoNCE is the same bound
at alpha = 1. A first run was thrown away because its teacher was at chance (it was pre-trained by masked tokens for too few steps).
Left out: data augmentation and the layer maps "skip" and EMD; the recommender's claim (it needs many pipelines on many data
sets). The recommender itself is `limbeck.search.Recommender`.
"""

from __future__ import annotations

from limbeck.beds.text import TextBed
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.objectives import CrossEntropy, Hint, MutualInformation, Objective, SoftTargets

BED = TextBed("ag_news", steps=500, learning_rate=2e-3)
LABELLED, STEPS = 600, 200


def objective(kind: str, weight: float, student: str, teacher: str) -> Objective:
    """Labels, soft targets and one objective for the hidden states of two layers ("none": no such objective)."""
    hidden = {
        "mi": MutualInformation(student, teacher, alpha=0.5),
        "infonce": MutualInformation(student, teacher, alpha=1.0),
        "mse": Hint(student, teacher),
        "cosine": Hint(student, teacher, loss="cosine"),
    }
    logits = CrossEntropy() + SoftTargets(temperature=2.0)
    return logits if kind == "none" else logits + weight * hidden[kind]


def distilled(run: Run, kind: str, weight: float = 0.0, bed: TextBed = BED, steps: int = STEPS) -> dict[str, float]:
    """Distil a student of half the depth and width on the labelled texts and measure it."""
    teacher, student = bed.teacher(run), bed.encoder(bed.depth // 2, bed.width // 2)
    loss = objective(kind, weight, f"blocks.{len(student.blocks) - 1}", f"blocks.{len(teacher.blocks) - 1}")
    return bed.measure(run, bed.fit(run, student, loss, teacher, steps=steps, limit=LABELLED))


def arm(kind: str, about: str) -> Arm:
    return Arm(distilled, {"kind": kind}, {"weight": (0.01, 0.1, 1.0)}, about)


paper = Paper(
    id=1,
    title="Distiller: A Systematic Study of Model Distillation Methods in Natural Language Processing",
    claim="The objective for hidden states matters most, and MI-alpha is the best of them",
    composition="Distil(CrossEntropy() + SoftTargets(2) + w * MutualInformation(last layer, last layer, alpha=0.5))",
    method=arm("mi", "MI-alpha, alpha 0.5"),
    baseline=arm("mse", "squared error through a projector"),
    control=Arm(distilled, {"kind": "none"}, {}, "logits only"),
    others={
        "cosine": arm("cosine", "cosine distance through a projector"),
        "infonce": arm("infonce", "alpha 1: InfoNCE"),
    },
    miniature=Miniature(beds=(BED,), seeds=3),
    metric="accuracy",
    comparisons=(
        Comparison(text="better than squared error"),
        Comparison(against="control", text="better than logits only"),
        Comparison(against="cosine", text="better than cosine distance"),
        Comparison(against="infonce", decisive=False, text="better than InfoNCE"),
    ),
    left_out="augmentation, other layer maps, the recommender's claim",
)
