"""MIX-KD: how mixup and distillation go together: a plain teacher, a student that sees a few mixed images, and logits of one spread.

Idea: mixup smooths what a network says. A teacher trained with it has blurred what it knows of similar classes; mixed images are good for
the student of a plain teacher. Few mixed images are enough (partial mixup), and as a mixed image's logits are smaller, both networks'
logits are divided by their own deviation in place of a temperature.

    L = 0.1 CE(y, softmax(z_s / std z_s)) + 0.9 KL(softmax(z_t / std z_t) || softmax(z_s / std z_s)),   on partially mixed (x, y)

Source: Choi, Jeon, Shukla, Turaga, "Understanding the Role of Mixup in Knowledge Distillation: An Empirical Study", WACV 2023. The authors'
code draws the images that stay unmixed with replacement: named 10 % mixed, it mixes about 41 %. The method chooses between both.
Pieces: `Standardized`, `SoftTargets`, `CrossEntropy` of `limbeck.objectives`; `mixup_share` of `TrainingConfig`.
Deviations: small residual networks on 500 MNIST images (the teacher has 5000) in place of CIFAR-100 and ImageNet; crops, no flips.
All arms weigh labels 0.1 and the teacher 0.9; the temperature of every arm with one is chosen from two values.
One run was made for the verdict. A plain teacher is the better one for plain images, as claimed. Mixed images do not help so small a student
of digits: with all of them mixed, 300 steps leave some seeds far behind (0.77 on average), with a tenth mixed it is as good as
without; and logits of one spread, at a temperature of 1, stay 2 to 3 points behind a temperature of 4.
"""

from __future__ import annotations

from limbeck.beds.images import MNIST_FEW as BED
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.objectives import CrossEntropy, SoftTargets, Standardized


def distil(
    run: Run,
    mixup: float = 0.0,
    mixup_share: float = 1.0,
    temperature: float | None = None,
    teacher_mixup: float = 0.0,
    bed=BED,
    **changes,
) -> dict[str, float]:
    """Labels and teacher, with a temperature or, without one, on standardized logits. mixup: alpha, of the student's images."""
    objective = 0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=temperature or 1.0)
    teacher = bed.trained_teacher(run, mixup=teacher_mixup)
    mixing = {"mixup": mixup, "mixup_share": mixup_share}
    return bed.distil(run, objective if temperature else Standardized(objective), teacher, **mixing, **changes)


CHOICE = {"temperature": (1.0, 4.0)}

paper = Paper(
    id=60,
    title="Understanding the Role of Mixup in Knowledge Distillation: An Empirical Study",
    claim="A plain teacher teaches a student on mixed images better than a teacher trained with mixup; partial mixup with rescaled "
    "logits beats plain distillation and distillation on fully mixed images.",
    composition="Distil(student, teacher, Standardized(0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=1.0))), mixup 1.0 on a share",
    method=Arm(distil, {"mixup": 1.0}, tune={"mixup_share": (0.1, 0.41)}, about="partial mixup, standardized logits"),
    baseline=Arm(distil, {"mixup": 1.0}, tune=CHOICE, about="mixup of all images"),
    control=Arm(distil, tune=CHOICE, about="no mixup"),
    others={
        "mixed_teacher": Arm(
            distil, {"mixup": 1.0, "teacher_mixup": 1.0}, tune=CHOICE, about="teacher and student mixup"
        ),
        "mixed_teacher_only": Arm(distil, {"teacher_mixup": 1.0}, tune=CHOICE, about="teacher mixup, student none"),
        "partial": Arm(distil, {"mixup": 1.0, "mixup_share": 0.1}, tune=CHOICE, about="partial mixup, a temperature"),
        "standardized": Arm(distil, about="no mixup, standardized logits"),
    },
    comparisons=(
        Comparison(text="partial mixup and standardized logits against full mixup"),
        Comparison(against="control", text="partial mixup and standardized logits against no mixup"),
        Comparison(
            method="baseline", against="mixed_teacher", text="mixed images: plain teacher against mixup teacher"
        ),
        Comparison(
            method="control",
            against="mixed_teacher_only",
            decisive=False,
            text="plain images: plain against mixup teacher",
        ),
        Comparison(method="baseline", against="control", decisive=False, text="full mixup against none"),
        Comparison(method="partial", against="baseline", decisive=False, text="partial against full mixup"),
        Comparison(
            method="standardized", against="control", decisive=False, text="standardized logits against a temperature"
        ),
    ),
    miniature=Miniature(beds=(BED,), seeds=5),
    metric="accuracy",
    left_out="CIFAR-100, ImageNet; other pairs of networks; views of the features; robustness to attacks.",
)
