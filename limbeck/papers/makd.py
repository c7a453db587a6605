"""MaKD: a student learns, beside its classes, what an annotator answers to many questions about each image.

    L = CE(class outputs, label) + alpha mean over images and questions of BCE(sigmoid(aspect output), annotator's probability of yes)

Idea: a label says which class an image shows, and nothing of what the classes have in common or how this image is unlike others of its class. A
large model is asked Q yes-or-no questions once about every training image; the student's classifier gets Q more outputs that
learn its answers. They share everything below, so that the features get richer, and are thrown away after training.

Source: Lee et al., "Multi-aspect Knowledge Distillation with Large Language Model", 2025; abstract and authors' code, with whose loss the pieces
agree. There the questions come from a language model and the answers from InternVL-2.5, about 50 of them, alpha 4, T = 1.
Pieces: `BinaryTargets` and `AtExit` of `limbeck.objectives` (an exit at the classifier's input is the widened classifier, see its
test), `Annotations` and `membership_logits` of `limbeck.teachers`.

Miniature: 1000 images of CIFAR-10 of 16x16. The annotator is a network that knows the 20 superclasses of CIFAR-100 from 20,000 images of
it, none of a class of CIFAR-10, and answers 34 questions: is it this superclass (20), is it an animal, a vehicle, something made, found
in water, furry, large (14). It is asked once about each unaugmented image. Control: the same answers, dealt out to the images at random,
so that every question keeps its share of yes. Others: each class's mean answer for all its images (what a question says of the class
alone), and the answers rounded to yes or no.
The weight is chosen among three, the label smoothing of the baseline too.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from limbeck.beds.images import CIFAR10_FEW as BED
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.objectives import AtExit, BinaryTargets, CrossEntropy
from limbeck.teachers import Annotations, membership_logits
from limbeck.teachers.subclasses import labelled_features

SUPERCLASSES = (  # of CIFAR-100, by the numbers of its classes
    (4, 30, 55, 72, 95),  # 0 aquatic mammals
    (1, 32, 67, 73, 91),  # 1 fish
    (54, 62, 70, 82, 92),  # 2 flowers
    (9, 10, 16, 28, 61),  # 3 food containers
    (0, 51, 53, 57, 83),  # 4 fruit and vegetables
    (22, 39, 40, 86, 87),  # 5 electrical devices
    (5, 20, 25, 84, 94),  # 6 furniture
    (6, 7, 14, 18, 24),  # 7 insects
    (3, 42, 43, 88, 97),  # 8 large carnivores
    (12, 17, 37, 68, 76),  # 9 large things outdoors, made
    (23, 33, 49, 60, 71),  # 10 large scenes outdoors, natural
    (15, 19, 21, 31, 38),  # 11 large omnivores and herbivores
    (34, 63, 64, 66, 75),  # 12 medium-sized mammals
    (26, 45, 77, 79, 99),  # 13 invertebrates but insects
    (2, 11, 35, 46, 98),  # 14 people
    (27, 29, 44, 78, 93),  # 15 reptiles
    (36, 50, 65, 74, 80),  # 16 small mammals
    (47, 52, 56, 59, 96),  # 17 trees
    (8, 13, 48, 58, 90),  # 18 vehicles of the road and rail
    (41, 69, 81, 85, 89),  # 19 other vehicles
)
ASPECTS = {  # the superclasses of which the answer is yes
    "an animal": (0, 1, 7, 8, 11, 12, 13, 14, 15, 16),
    "a mammal": (0, 8, 11, 12, 14, 16),
    "furry": (8, 11, 12, 16),
    "four-legged": (8, 11, 12, 15, 16),
    "cold-blooded": (1, 7, 13, 15),
    "in water": (0, 1),
    "a plant": (2, 4, 17),
    "edible": (1, 4, 13),
    "made": (3, 5, 6, 9, 18, 19),
    "a vehicle": (18, 19),
    "indoors": (3, 5, 6),
    "outdoors": (9, 10, 17, 18, 19),
    "larger than a man": (8, 9, 10, 11, 17, 18, 19),
    "small enough to hold": (3, 4, 7, 13, 16),
}
QUESTIONS = (*((number,) for number in range(20)), *ASPECTS.values())
ANNOTATOR = replace(
    BED, name="cifar100 16x16, 20 superclasses", dataset="cifar100", groups=SUPERCLASSES, train=None, expects={}
)


def answers(run: Run, kind: str, bed, annotator) -> Tensor:
    """The annotator's answer to every question about every training image of the bed (images, questions)."""
    found, labels = labelled_features(annotator.trained_teacher(run), bed.task(), "logits")
    aspects = membership_logits(found, QUESTIONS)
    if kind == "dealt":
        return aspects[torch.randperm(len(aspects), generator=run.generator("deal"))]
    if kind == "rounded":
        return 20 * aspects.sign()
    if kind == "class":
        shares = aspects.sigmoid()
        return torch.stack([shares[labels == label].mean(0) for label in range(int(labels.max()) + 1)])[labels].logit()
    return aspects


def aspects(run: Run, weight: float = 4.0, kind: str = "image", bed=BED, annotator=ANNOTATOR, **changes):
    """Labels and the annotator's answers."""
    objective = CrossEntropy() + weight * AtExit("fc:input", BinaryTargets(), teacher="aspects")
    return bed.distil(run, objective, Annotations({"aspects": answers(run, kind, bed, annotator)}), **changes)


def labels(run: Run, smoothing: float = 0.0, bed=BED, annotator=None, **changes):
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
    miniature=Miniature(beds=(BED, ANNOTATOR), seeds=5, equal=("steps", "samples", "parameters")),
    metric="accuracy",
    left_out="Questions by a language model and answers by a vision-language model; fine-grained data sets; detection; the sum with KD.",
)
