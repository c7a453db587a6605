"""MaKD: a student learns, beside its classes, what an annotator answers to many questions about each image.

    L = CE(class outputs, label) + alpha mean over images and questions of BCE(sigmoid(aspect output), annotator's probability of yes)

Idea: a label says which class an image shows, and nothing of what the classes have in common or how this image is unlike others of its class. A
large model is asked Q yes-or-no questions once about every training image; the student's classifier gets Q more outputs that
learn its answers. They share everything below, so that the features get richer, and are thrown away after training.

Source: Lee et al., "Multi-aspect Knowledge Distillation with Large Language Model", 2025; abstract and authors' code, with whose loss the pieces
agree. There the questions come from a language model and the answers from InternVL-2.5, about 50 of them, alpha 4, T = 1.
Pieces: `BinaryTargets` and `AtExit` of `limbeck.objectives` (an exit at the classifier's input is the widened classifier, see its
test), `Annotations` and `membership_logits` of `limbeck.teachers`.

Miniature: 50 images of each MNIST digit for the student. The annotator is a wider network that has seen ten times as many, and is asked 20
questions about each unaugmented image: has it a closed loop, a straight stroke, is it the same upside down, is it even, a prime. No
question asks for the digit. Control: the same answers, dealt out to the images at random, so that every question keeps its share of yes.
Others: each digit's mean answers for all its images (what the answers say of the class alone), and the answers rounded to yes or no. The
weight is chosen among three, the label smoothing of the baseline too.
A first form was given up after tuning (seed 1000, validation): 1000 images of CIFAR-10, and an annotator that knew the superclasses of
CIFAR-100 alone. Its answers lowered the loss (1.74 to 1.68) and left the accuracy as it was (0.416 with labels, 0.415, 0.413 and 0.403).
One run was made for the verdict. The answers add one point, at the grid's largest weight, above labels with smoothing and above random
answers; four seeds of five agree, the fifth is a point below, and five are too few to tell. Answers about the image, its class and rounded
ones do equally well: what helps is what the digits have in common. The calibration is that of the smoothing, which the
baseline chose and which leaves it too unsure.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.beds.images import MNIST_FEW as BED
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.objectives import AtExit, BinaryTargets, CrossEntropy
from limbeck.teachers import Annotations, membership_logits
from limbeck.teachers.subclasses import labelled_features

ASPECTS = {  # the digits of which the answer is yes
    "a closed loop": (0, 4, 6, 8, 9),
    "two loops": (8,),
    "the loop is above": (4, 8, 9),
    "the loop is below": (6, 8),
    "a straight stroke": (1, 4, 5, 7),
    "only straight strokes": (1, 4, 7),
    "a level stroke above": (5, 7),
    "a level stroke below": (2,),
    "a corner": (2, 4, 5, 7),
    "two loose ends": (1, 2, 3, 5, 7),
    "open to the left": (2, 3, 5, 7, 9),
    "open to the right": (2, 4, 5, 6),
    "its left is its right in a mirror": (0, 1, 8),
    "its upper half is its lower in a mirror": (0, 1, 3, 8),
    "a number too when upside down": (0, 1, 6, 8, 9),
    "narrow": (1, 7),
    "even": (0, 2, 4, 6, 8),
    "more than four": (5, 6, 7, 8, 9),
    "a prime": (2, 3, 5, 7),
    "a square": (0, 1, 4, 9),
}


def answers(run: Run, kind: str, bed) -> Tensor:
    """The annotator's answer to every question about every training image (images, questions)."""
    found, labels = labelled_features(bed.trained_teacher(run), bed.task(), "logits")
    aspects = membership_logits(found, ASPECTS.values())
    if kind == "dealt":
        return aspects[torch.randperm(len(aspects), generator=run.generator("deal"))]
    if kind == "rounded":
        return 20 * aspects.sign()
    if kind == "class":
        shares = aspects.sigmoid()
        return torch.stack([shares[labels == label].mean(0) for label in range(int(labels.max()) + 1)])[labels].logit(
            eps=1e-6
        )
    return aspects


def aspects(run: Run, weight: float = 4.0, kind: str = "image", bed=BED, **changes):
    """Labels and the annotator's answers."""
    objective = CrossEntropy() + weight * AtExit("fc:input", BinaryTargets(), teacher="aspects")
    return bed.distil(run, objective, Annotations({"aspects": answers(run, kind, bed)}), **changes)


def labels(run: Run, smoothing: float = 0.0, bed=BED, **changes):
    """Labels alone."""
    return bed.distil(run, CrossEntropy(smoothing), **changes)


WEIGHTS = {"weight": (1.0, 4.0, 16.0)}
paper = Paper(
    id=225,
    title="Multi-aspect Knowledge Distillation with Large Language Model",
    claim="A classifier that also learns an external annotator's answers to questions about each training image is more accurate than "
    "one trained on labels alone, at no cost when it is used.",
    composition='Distil(student, Annotations({"aspects": answers}), CrossEntropy() + alpha * AtExit("fc:input", BinaryTargets(), '
    'teacher="aspects"))',
    method=Arm(aspects, tune=WEIGHTS, about="CE + answers"),
    baseline=Arm(labels, tune={"smoothing": (0.0, 0.05, 0.1)}, about="CE"),
    control=Arm(aspects, {"kind": "dealt"}, WEIGHTS, "CE + answers dealt out at random"),
    others={
        "class_means": Arm(aspects, {"kind": "class"}, WEIGHTS, "CE + mean answers of each class"),
        "rounded": Arm(aspects, {"kind": "rounded"}, WEIGHTS, "CE + answers rounded to yes or no"),
    },
    comparisons=(
        Comparison(text="better than labels alone"),
        Comparison(against="control", text="better than random answers"),
        Comparison(
            against="class_means", decisive=False, text="answers about the image against answers about its class"
        ),
        Comparison(against="rounded", decisive=False, text="soft answers against hard ones"),
        Comparison("calibration_error", better="lower", decisive=False, text="better calibrated than labels alone"),
    ),
    miniature=Miniature(beds=(BED,), seeds=5, equal=("steps", "samples", "parameters")),
    metric="accuracy",
    left_out="Questions by a language model and answers by a vision-language model; fine-grained data sets; detection; the sum with KD.",
)
