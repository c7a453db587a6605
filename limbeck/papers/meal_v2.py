"""MEAL V2: a trained student goes on learning from the mean of several teachers, without labels and without weight decay.

    L = KL(mean_m softmax(z_m) || softmax(z_s)) [+ discriminator]     temperature 1, from a trained checkpoint, no one-hot labels

Idea: the mean of good teachers is a better label than the label; a student that can already see needs no other, and the soft
labels regularize so well that weight decay only hinders. A small network that tells student from teachers on their logits
is added as a regularizer.

Source: Shen and Savvides, "MEAL V2: Boosting Vanilla ResNet-50 to 80%+ Top-1 Accuracy on ImageNet without Tricks", 2020; the authors'
code was read. Its loss is the cross-entropy with the mean (the same gradient); its discriminator turns no gradient, so the student
is trained to be told apart, against the wording: the arm `discriminator` is the wording, `separable` the code.
Pieces: `EnsembleTeacher` of `limbeck.teachers`, `SoftTargets`, `Discriminator` of `limbeck.objectives`.
Deviations: three residual networks that differ in their seed, trained on 5000 MNIST images; the student's checkpoint and its
further training see 500. The learning rate, the discriminator's too, is chosen per arm.
What came out: the teachers' mean beats labels, needs neither labels nor weight decay and gains three points by the checkpoint; three
teachers and one differ by less than five seeds can tell; the discriminator does harm when its gradient is turned and nothing
when it is not.
"""

from __future__ import annotations

from limbeck.beds.images import MNIST_FEW as BED
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.objectives import CrossEntropy, Discriminator, Objective, SoftTargets
from limbeck.teachers import EnsembleTeacher, FrozenTeacher

MEAN = SoftTargets(temperature=1.0)


def taught(run: Run, objective: Objective, members: int, bed, learning_rate: float, trained: bool = True, **changes):
    """Train the bed's student, from its checkpoint or from scratch, with so many teachers (0: none)."""
    teachers = [FrozenTeacher(bed.trained_teacher(run, seed=seed)) for seed in range(members)]
    teacher = EnsembleTeacher(teachers) if members > 1 else (teachers or [None])[0]
    student = bed.trained_student(run) if trained else bed.new_student(run)
    changes = {"learning_rate": learning_rate, "weight_decay": 0.0} | changes
    return bed.distil(run, objective, teacher, student, **changes)


def mean(run: Run, learning_rate: float = 0.03, members: int = 3, trained: bool = True, bed=BED, **changes):
    """The teachers' mean alone (members 1: one teacher)."""
    return taught(run, MEAN, members, bed, learning_rate, trained, **changes)


def with_labels(run: Run, learning_rate: float = 0.03, bed=BED, **changes):
    """The teachers' mean and the labels."""
    return taught(run, MEAN + CrossEntropy(), 3, bed, learning_rate, **changes)


def judged(run: Run, learning_rate: float = 0.03, adversarial: bool = True, bed=BED, **changes):
    """The teachers' mean and the discriminator."""
    return taught(run, MEAN + Discriminator(adversarial), 3, bed, learning_rate, **changes)


def labels(run: Run, learning_rate: float = 0.03, weight_decay: float = 5e-4, bed=BED, **changes):
    """The labels alone, from the same checkpoint."""
    return taught(run, CrossEntropy(), 0, bed, learning_rate, weight_decay=weight_decay, **changes)


RATES = {"learning_rate": (0.01, 0.03, 0.1)}
paper = Paper(
    id=85,
    title="MEAL V2: Boosting Vanilla ResNet-50 to 80%+ Top-1 Accuracy on ImageNet without Tricks",
    claim="A trained student gains by the mean of several teachers, more than by one, and needs neither labels nor weight decay.",
    composition="Distil(trained student, EnsembleTeacher(three), SoftTargets(temperature=1) [+ Discriminator()]), weight_decay=0",
    method=Arm(mean, tune=RATES, about="mean of three teachers, no labels, no weight decay"),
    baseline=Arm(mean, {"members": 1}, RATES, about="one teacher"),
    control=Arm(labels, tune=RATES, about="labels alone, with weight decay"),
    others={
        "labels_too": Arm(with_labels, tune=RATES, about="mean and labels"),
        "decay": Arm(mean, {"weight_decay": 5e-4}, RATES, about="mean, with weight decay"),
        "scratch": Arm(mean, {"trained": False}, RATES, about="mean, untrained student"),
        "discriminator": Arm(judged, tune=RATES, about="mean and discriminator, gradient turned"),
        "separable": Arm(judged, {"adversarial": False}, RATES, about="mean and discriminator as in the code"),
    },
    comparisons=(
        Comparison(text="three teachers against one"),
        Comparison(against="control", text="against labels alone"),
        Comparison(against="labels_too", margin=0.005, text="as good as with labels, up to 0.5 points"),
        Comparison(
            against="decay", margin=0.005, decisive=False, text="as good as with weight decay, up to 0.5 points"
        ),
        Comparison(against="scratch", decisive=False, text="trained checkpoint against none"),
        Comparison(method="discriminator", against="method", decisive=False, text="what the discriminator adds"),
        Comparison(method="separable", against="method", decisive=False, text="what the code's form of it adds"),
    ),
    miniature=Miniature(beds=(BED,), seeds=5, equal=("steps", "samples", "parameters")),
    metric="accuracy",
    left_out="ImageNet; teachers of other architectures; CutMix; a learning rate of its own for the discriminator.",
)
