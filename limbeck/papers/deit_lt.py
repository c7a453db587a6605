"""DeiT-LT: a vision transformer on a long tail, whose distillation token learns from a convolutional teacher and ends on rare classes.

    L = 1/2 CE(head(class token), mixed labels) + 1/2 CE_w(head(distillation token), argmax teacher(mixed image))

Idea: with few images of a class a transformer has no prior to lean on. The teacher's hard answers to images as strongly mixed as the
student's carry its locality, right or wrong; late in training the distillation loss weighs rare classes more, so its token
becomes the expert for them while the class token stays the expert for frequent ones. The answer is the mean of both heads.

Source: Rangwani et al., "DeiT-LT: Distillation Strikes Back for Vision Transformer Training on Long-Tailed Datasets", CVPR 2024; the
authors' code was read. Weights w are those of the effective number of examples and act in the last twelfth of the epochs.
Pieces: `vit(distilled=True)` of `limbeck.models`, `HardTargets`, `OnSignal`, `Scheduled`, `PriorAdjusted` of `limbeck.objectives`,
`class_balanced_weights` of `limbeck.datasets.imbalance`, `SharpnessAware` of `limbeck.training`, mixup of the Trainer.
Deviations: MNIST of 14x14 with class sizes from 441 to 9; a residual network trained with adjusted logits stands for the teacher
trained with PaCo or LDAM, with SAM in the arm `flat`, which a second run added; mixing stays on in the last epochs; the baseline's
teacher is trained on plain labels.
Settings by hand on the validation split with seed 1000, the same for all arms: patches of 2 and strong mixing (mixup 0.8, cutmix 1)
left the transformer at 0.2 to 0.5; four patches and mixup 0.2 were taken. Both heads' accuracies by frequency are in the ledger.
What came out: the rare classes gain as claimed, and the token is their expert (0.32 to 0.49 where the class token has 0.11 to 0.29,
with the frequent classes the other way round), but over all classes five seeds do not settle it; a transformer without a teacher
whose own logits are adjusted is far better than all.
"""

from __future__ import annotations

from torch import nn

from limbeck.beds.images import MNIST_TAIL as BED
from limbeck.datasets.imbalance import class_balanced_weights
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.models import vit
from limbeck.objectives import CrossEntropy, HardTargets, Objective, OnSignal, PriorAdjusted, Scheduled
from limbeck.training import Distil

HEAD, TOKEN = "head", "distillation_head"
SIZES = {"patch": 7, "depth": 2, "width": 64, "heads": 4}
SCHEDULE = {"optimizer": "adamw", "learning_rate": 2e-3, "weight_decay": 0.05, "mixup": 0.2, "epochs": 20}


def transformer(run: Run, bed, distilled: bool) -> nn.Module:
    """An untrained student."""
    size = bed.task().height
    sizes = {
        **SIZES,
        "size": size,
        "patch": min(SIZES["patch"], size // 2),
        "channels": bed.channels,
        "distilled": distilled,
    }
    return bed.new_student(run, lambda: vit(**sizes))


def objective(counts: tuple[int, ...], change: float | None) -> Objective:
    """Labels for the class token, the teacher's hard answers for the other, weighted by class from epoch `change` on (None: never)."""
    plain = OnSignal(TOKEN, HardTargets())
    total = 0.5 * OnSignal(HEAD, CrossEntropy())
    if change is None:
        return total + 0.5 * plain
    weighted = OnSignal(TOKEN, HardTargets(class_balanced_weights(counts)))
    return total + 0.5 * Scheduled(plain, end=change) + 0.5 * Scheduled(weighted, begin=change)


def distilled(
    run: Run, balanced: bool = True, reweighted: bool = True, radius: float = 0.0, epochs=None, bed=BED, **changes
):
    """A transformer with a distillation token. balanced: the teacher was trained with adjusted logits; reweighted: see
    `objective`; radius: of the teacher's sharpness-aware minimization, 0: none."""
    counts, epochs = bed.task().class_counts(), epochs or SCHEDULE["epochs"]
    labels = PriorAdjusted(CrossEntropy(), counts) if balanced else None
    teacher = bed.trained_teacher(run, objective=labels, radius=radius)
    student = transformer(run, bed, True)
    change = int(epochs * 11 / 12) if reweighted else None
    bed.fit(run, Distil(student, teacher, objective(counts, change)), **(SCHEDULE | {"epochs": epochs} | changes))
    heads = {"class": bed.measure(run, student, HEAD), "token": bed.measure(run, student, TOKEN)}
    kept = {
        f"{which}_{name}": found[name] for which, found in heads.items() for name in found if name.endswith("_accuracy")
    }
    return bed.measure(run, student) | kept


def labels(run: Run, adjusted: bool = False, bed=BED, **changes) -> dict[str, float]:
    """A transformer without a teacher, on labels or on labels with adjusted logits."""
    loss = PriorAdjusted(CrossEntropy(), bed.task().class_counts()) if adjusted else CrossEntropy()
    return bed.fit(run, Distil(transformer(run, bed, False), None, loss), **(SCHEDULE | changes))


paper = Paper(
    id=126,
    title="DeiT-LT Distillation Strikes Back for Vision Transformer Training on Long-Tailed Datasets",
    claim="On a long tail, a distillation token taught by a balanced CNN and re-weighted late makes a transformer better than plain "
    "hard distillation and than labels.",
    composition="Distil(vit(distilled=True), CNN, 0.5 * OnSignal(head, CrossEntropy()) + 0.5 * OnSignal(distillation_head, "
    "HardTargets(), then HardTargets(weights)))",
    method=Arm(distilled, about="balanced teacher, re-weighted late"),
    baseline=Arm(distilled, {"balanced": False, "reweighted": False}, about="DeiT: plain teacher, no weights"),
    control=Arm(labels, about="no teacher"),
    others={
        "reweighted": Arm(distilled, {"balanced": False}, about="plain teacher, re-weighted late"),
        "balanced": Arm(distilled, {"reweighted": False}, about="balanced teacher, no weights"),
        "flat": Arm(distilled, {"radius": 0.05}, about="balanced and flat teacher, re-weighted late"),
        "adjusted": Arm(labels, {"adjusted": True}, about="no teacher, logits adjusted"),
    },
    comparisons=(
        Comparison(text="against DeiT's hard distillation"),
        Comparison(against="control", text="against labels alone"),
        Comparison("rare_accuracy", text="the rarest third, against DeiT"),
        Comparison(against="balanced", decisive=False, text="what the weights add"),
        Comparison(against="reweighted", decisive=False, text="what the balanced teacher adds"),
        Comparison(method="flat", against="method", decisive=False, text="what a flat teacher adds"),
        Comparison(against="adjusted", decisive=False, text="against adjusted logits without a teacher"),
    ),
    miniature=Miniature(beds=(BED,), seeds=5),
    metric="accuracy",
    left_out="CIFAR-LT, ImageNet-LT, iNaturalist; the ranks of the tokens' features; RandAugment.",
)
