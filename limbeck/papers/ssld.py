"""SSLD: the student learns from the teacher's predictions alone, on labelled and on chosen unlabelled images.

Idea: without a label in the loss any image can be learned from. A strong teacher goes over a large pool and keeps for each class the
images it is surest of; copies of what the model is measured on are taken out first. Then the student is trained on both sets to agree
with the teacher, and at last a little on the first set alone, at a hundredth of the rate.

    L = JS(softmax z_t || softmax z_s)

Source: Cui et al., "Beyond Self-Supervision: A Simple Yet Effective Network Distillation Alternative to Improve Backbones", 2021, and the
authors' public description of their recipe (selection by the teacher's score of each class).
Pieces: `JensenShannon`, `SoftTargets`, `CrossEntropy` of `limbeck.objectives`; `highest_per_class`, `without_copies` of
`limbeck.datasets`; `ExtendedTask` of `limbeck.tasks`.
Miniature: 500 labelled MNIST images, which also trained the teacher; a pool of 3000 others and 3000 photographs (CIFAR-10, grey);
1500 are chosen. Every arm takes 450 steps with labelled or chosen images and 50 on the labelled ones at 1/100 of the rate.
Deviations: copies are found by the correlation of pixels, there by SIFT; no second teacher, no fine-tuning at another resolution.
The ledger is a second attempt. In the first, JS had the weight 1 and had not learned to tell digits after 500 steps (0.61; KL 0.92, labels
0.93): where two predictions are far apart its gradient is next to none. Now every arm with a teacher chooses a weight too. The teacher's
choice beats chance by far: 10 % of the chosen images are photographs, at random 56 %. But the images that a teacher of 500 labels
is surest of add nothing to these 500 (KL 0.928, labels 0.928), and JS trains unevenly in so few steps.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from limbeck.beds.images import MNIST_FEW, ImageBed
from limbeck.datasets import highest_per_class, without_copies
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.objectives import CrossEntropy, JensenShannon, Objective, SoftTargets
from limbeck.signals import call
from limbeck.tasks import ExtendedTask, ImageClassification, Task
from limbeck.training import Distil

BED = replace(
    MNIST_FEW,
    name="mnist 14x14, 500 labels for teacher and student",
    teacher_train=500,
    teacher_training=replace(MNIST_FEW.teacher_training, epochs=20, batch_size=32),
    expects={"accuracy": (0.82, 0.95), "teacher_accuracy": (0.85, 0.98)},
)


def pool(bed: ImageBed, size: int, strangers: str | None) -> Task:
    """Images without labels: others of the bed's data set, and as many of another one."""
    own = bed.task(bed.train + size)
    if strangers is None:
        return own
    shape = {
        "size": bed.size,
        "channels": bed.channels,
        "mean": bed.mean,
        "std": bed.std,
        "crop": bed.crop,
        "flip": False,
    }
    few = {"train": size, "validation": 1, "test": 1}
    return ExtendedTask(own, ImageClassification(strangers, examples=few, **shape))


def images(task: Task, split: str = "train") -> Tensor:
    """The images of a split, in file order."""
    return torch.cat([batch["pixel_values"] for batch in task.batches(split, 512)])


def chosen(run: Run, bed: ImageBed, found: Task, how: str, count: int) -> Tensor:
    """Positions in the pool: the teacher's surest ("selected"), or as many at random; copies of known images are out."""
    teacher = bed.trained_teacher(run)

    @torch.no_grad()
    def make() -> dict[str, Tensor]:
        seen = images(found)
        known = torch.cat([images(bed.task()), images(bed.task(), "validation")])
        free = without_copies(seen, known)
        scores = torch.cat([call(teacher, {"pixel_values": part}).softmax(-1) for part in seen[free].split(512)])
        best = free[highest_per_class(scores, count)]
        return {"selected": best, "random": free[torch.randperm(len(free))[: len(best)]].sort().values}

    key = {"bed": bed.digest(), "pool": found.digest(), "count": count, "seed": 0, "version": 1}
    return run.tensors(key, make)[how]


def objective(kind: str, temperature: float, weight: float) -> Objective:
    """What an arm minimizes; without labels on all images."""
    if kind == "labels":
        return CrossEntropy()
    if kind == "both":
        return CrossEntropy() + weight * SoftTargets(temperature=temperature)
    return weight * (JensenShannon if kind == "js" else SoftTargets)(temperature=1.0, positions="all")


def distil(
    run: Run,
    kind: str = "js",
    extra: str | None = None,
    temperature: float = 1.0,
    weight: float = 1.0,
    count: int = 150,
    size: int = 3000,
    strangers: str | None = "cifar10",
    steps: int = 450,
    last: int = 50,
    bed: ImageBed = BED,
) -> dict[str, float]:
    """Train on the labelled images, and on those chosen from the pool where asked; then on the labelled ones alone."""
    task, made = bed.task(), objective(kind, temperature, weight)
    if extra:
        found = pool(bed, size, strangers)
        task = ExtendedTask(task, found, chosen(run, bed, found, extra, count))
    teacher = bed.trained_teacher(run) if made.reads.teacher else None
    procedure = Distil(bed.new_student(run), teacher, made)
    run.train(procedure, task, bed.config(steps=steps))
    return bed.fit(run, procedure, steps=last, learning_rate=bed.training.learning_rate / 100)


WEIGHTS = {"weight": (4.0, 16.0)}  # near agreement JS is a quarter of KL

paper = Paper(
    id=202,
    title="Beyond Self-Supervision: A Simple Yet Effective Network Distillation Alternative to Improve Backbones",
    claim="Distillation without labels, on unlabelled images that the teacher chose too, beats training with labels, with labels and a "
    "teacher, on the labelled images alone, and on images chosen at random.",
    composition="Distil(student, teacher, JensenShannon(positions='all')) on ExtendedTask(labelled, pool, highest_per_class(scores, n))",
    method=Arm(distil, {"extra": "selected"}, tune=WEIGHTS, about="JS, labelled and selected images"),
    baseline=Arm(
        distil,
        {"kind": "both"},
        tune={"temperature": (1.0, 4.0), "weight": (1.0, 3.0)},
        about="labels and KL, labelled images",
    ),
    control=Arm(distil, {"extra": "random"}, tune=WEIGHTS, about="JS, labelled and random images"),
    others={
        "labels": Arm(distil, {"kind": "labels"}, about="labels alone"),
        "labelled": Arm(distil, tune=WEIGHTS, about="JS, labelled images"),
        "kl": Arm(
            distil,
            {"kind": "kl", "extra": "selected"},
            tune={"weight": (1.0, 4.0)},
            about="KL, labelled and selected images",
        ),
    },
    comparisons=(
        Comparison(text="selected images without labels against labels and KL"),
        Comparison(against="control", text="selected against random images"),
        Comparison(against="labels", text="against labels alone"),
        Comparison(against="labelled", text="against JS on labelled images"),
        Comparison(against="kl", decisive=False, text="JS against KL"),
    ),
    miniature=Miniature(beds=(BED,), seeds=5),
    metric="accuracy",
    left_out="ImageNet with 4 million chosen images; stronger augmentation; detection and segmentation; the head tuned at 320 pixels.",
)
