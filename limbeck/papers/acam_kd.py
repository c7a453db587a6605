"""ACAM-KD: what of a map is imitated is decided by masks that student and teacher make together, anew in every step.

    L = CE + alpha (L_c + L_s) + lambda L_div       (formulas: `MaskedHints`)

Idea: masks that a teacher fixes point a student to the same places from the first step to the last, whatever it has learnt by then.
Here the teacher's map asks and the student's answers in a cross-attention; of what comes out, learnt units read masks over
channels and over places, so they follow the student; a Dice term keeps them unlike each other.
Source: Lan and Tian, "ACAM-KD: Adaptive and Cooperative Attention Masking for Knowledge Distillation", ICCV 2025. Read in public notes
that copy the equations; the authors have published no code. For segmentation the maps are the predicted ones and there are as many
masks as classes, as here.
Pieces: `MaskedHints` and `AtPlaces` of `limbeck.objectives`, the task `SemanticSegmentation`, the bed `limbeck.beds.segmentation`.
Deviations: CamVid at 64x48, a tiny U-Net that works at a quarter of the size learns from a larger one at half of it, whose map is
averaged to the student's. lambda is 1 within the masks' term. Every arm with a teacher chooses among three weights on the validation
split. The masks' weighting is "share" (divided by each mask's sum), chosen by hand on the validation split with a seed of its own: "sum",
as the notes copy it, was worse there at the two weights that were tried, which mean other things on maps of another size.
`teacher` are the same masks made by the teacher alone (its own queries, keys and values). `overlap` is the Dice overlap of the masks
over places, 0 to 1; `change`, how far they move from the middle of training to its end, on the same images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.beds.segmentation import CAMVID
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.objectives import AtPlaces, AttentionTransfer, CrossEntropy, Hint, MaskedHints, Objective
from limbeck.objectives.features.masks import overlap
from limbeck.signals import capture
from limbeck.training import Distil

BED = CAMVID
MAP = "head"  # the predicted map, before it is resized to the image
MASKS = 11  # one per class


class Watched(Distil):
    """Distillation that keeps the masks of some images at the middle of training and at its end."""

    def __init__(self, student, teacher, masks: MaskedHints, weight: float, images):
        super().__init__(student, teacher, AtPlaces(CrossEntropy()) + weight * masks)
        self.masks, self.images, self.seen = masks, images, []

    def after_step(self, state) -> None:
        super().after_step(state)
        if state.step + 1 in (max(1, state.steps // 2), state.steps):
            self.seen.append(self.masks_over_places())

    @torch.no_grad()
    def masks_over_places(self) -> Tensor:
        """(B, masks, places)"""
        self.student.eval()
        own, teacher = capture(self.student, self.images, {MAP}), self._teacher_signals(self.images)
        self.student.train()
        made = {name.removeprefix("1_"): module for name, module in self.connectors.items()}
        return self.masks.made_masks(own, teacher, {}, made)[1]


def masked(
    run: Run, weight: float = 0.1, weighting: str = "share", key: str = "student", bed=BED, **changes
) -> dict[str, float]:
    """Labels and masked hints; key: who answers the teacher's queries, "student" (cooperative) or "teacher" (the teacher alone)."""
    objective = MaskedHints(MAP, masks=MASKS, weighting=weighting, key=key)
    images = next(bed.task().batches("train", 4))
    procedure = Watched(bed.new_student(run), bed.usual_teacher(run), objective, weight, images)
    found = bed.fit(run, procedure, **changes)
    first, last = procedure.seen[0], procedure.seen[-1]
    made = {"overlap": overlap(last).mean() / (MASKS - 1), "change": (last - first).abs().mean()}
    return found | {name: float(value) for name, value in made.items()}


def plain(run: Run, hint: Objective | None, bed, **changes) -> dict[str, float]:
    return bed.distil(run, AtPlaces(CrossEntropy()) + hint if hint else AtPlaces(CrossEntropy()), **changes)


def mse(run: Run, weight: float = 0.1, bed=BED, **changes) -> dict[str, float]:
    """Labels and the plain mean squared error of the maps."""
    return plain(run, weight * Hint(MAP), bed, **changes)


def attention(run: Run, weight: float = 1.0, bed=BED, **changes) -> dict[str, float]:
    """Labels and attention transfer on the maps."""
    return plain(run, weight * AttentionTransfer(MAP), bed, **changes)


def labels(run: Run, bed=BED, **changes) -> dict[str, float]:
    """Labels alone."""
    return plain(run, None, bed, **changes)


SETTINGS = {"weight": (0.01, 0.03, 0.1)}
paper = Paper(
    id=29,
    title="ACAM-KD: Adaptive and Cooperative Attention Masking for Knowledge Distillation",
    claim="Masks that student and teacher learn together beat teacher-only feature masks in dense prediction.",
    composition='Distil(student, teacher, AtPlaces(CrossEntropy()) + alpha * MaskedHints("head", masks=classes))',
    method=Arm(masked, tune=SETTINGS, about="CE + hints under masks of both"),
    baseline=Arm(mse, tune=SETTINGS, about="CE + MSE of the maps"),
    control=Arm(masked, {"key": "teacher"}, SETTINGS, about="CE + hints under masks of the teacher alone"),
    others={
        "attention": Arm(attention, tune={"weight": (0.3, 1.0, 3.0)}, about="CE + attention transfer"),
        "labels": Arm(labels, about="CE, no teacher"),
    },
    comparisons=(
        Comparison(text="cooperative masks against plain MSE"),
        Comparison(against="control", text="cooperative masks against the teacher's alone"),
        Comparison(against="attention", decisive=False, text="cooperative masks against attention transfer"),
        Comparison(against="labels", decisive=False, text="cooperative masks against labels alone"),
        Comparison(
            "change", against="control", decisive=False, text="masks of both move more than the teacher's alone"
        ),
    ),
    miniature=Miniature(beds=(BED,), seeds=5, equal=("steps", "samples", "parameters")),
    metric="mean_iou",
    left_out="COCO detection with FPN maps; Cityscapes; DeepLabV3 and PSPNet; FGD, MasKD and FreeKD; the student as the one who asks.",
)
