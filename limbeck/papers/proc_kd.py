"""ProC-KD: a teacher of other classes gives a student a dictionary of local features, which enriches what the student sees.

    L = CE(plain answer) + CE(answer on the teacher's tokens, summed up and enriched with prototypes) + w sum_l |r(s_l) - t_l|^2

Idea: answers and whole features of another task do not fit, but shapes of parts do. Prototypes are learnt where the teacher's tokens are
classified with the student's labels; at inference the student's own tokens are enriched with the prototypes that are like them.
Source: "Prototype-guided Cross-task Knowledge Distillation for Large-scale Models"; the authors' public code was read: it has the modules
(`PrototypeSummary` and `PrototypeAugmentation` agree with it, on places of a map instead of a transformer's tokens) and both
answers, but no losses and no training: the weights are not known, and labels on the branch weigh 1 here.
Pieces: `PrototypeDistil`, `PrototypeBranch` of `limbeck.training`, `prototype_resnet` of `limbeck.models`, `Hint`, the bed
`limbeck.beds.transfer`.
Deviations: a teacher of the digits 0-4 and a student of the digits 5-9 with 20 images of each instead of large vision transformers;
hidden layers are imitated, attention maps are not (a residual network has none). All arms have the same student, prototypes included.
`own`: whether labels also act on the student's own enriched answer in training (the code's branch sees the teacher's tokens alone); it is
among the settings of every arm with prototypes that learn from the teacher. Baselines learn their augmentation that way.
`plain_accuracy` is that of the answer without prototypes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from limbeck.beds.transfer import DIGITS_FROM_OTHERS
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.measure.latency import evaluating
from limbeck.models import prototype_resnet
from limbeck.objectives import Hint
from limbeck.training import PrototypeDistil

BED = dataclasses.replace(DIGITS_FROM_OTHERS, name="digits 5-9, 20 labels each", labelled=20, repeats=20, unlabelled=0)
LAYERS = ("layer1", "layer2", "layer3")
PROTOTYPES = 72


def train(
    run: Run,
    branch: float = 1.0,
    own: float = 0.0,
    hint: float = 0.0,
    learnt: bool = True,
    bed=BED,
    **changes,
) -> Mapping[str, float]:
    """A student with prototypes: weights of the teacher's branch, of labels on the enriched answer and of hints in every stage.

    learnt: False leaves the prototypes at their random first values.
    """
    student = run.fresh(lambda: prototype_resnet(8, 5, 1, bed.width, PROTOTYPES))
    student.augment.prototypes.requires_grad_(learnt)
    hints = [hint * Hint(f"backbone.{layer}", layer) for layer in LAYERS] if hint else []
    teacher = bed.source(run, "digits")
    objective = sum(hints[1:], hints[0]) if hints else None
    found = bed.fit(run, PrototypeDistil(student, teacher, LAYERS, objective, branch, own), **changes)
    run.record(parameters=sum(p.numel() for p in student.parameters()))
    with evaluating(student):
        plain = bed.task().evaluate(lambda batch: student.backbone(batch["pixel_values"]), run.split)
    return found | {"plain_accuracy": plain["accuracy"]}


HINTS = (0.1, 1.0)
paper = Paper(
    id=238,
    title="Prototype-guided Cross-task Knowledge Distillation for Large-scale Models",
    claim="Prototypes carry local knowledge across tasks: a student learns more from a teacher of other classes through them than by "
    "imitating features.",
    composition='PrototypeDistil(prototype_resnet(8), teacher, layers, Hint("backbone.layer3", "layer3"))',
    method=Arm(train, tune={"hint": HINTS, "own": (0.0, 1.0)}, about="labels, teacher's branch, hints"),
    baseline=Arm(
        train, {"branch": 0.0, "own": 1.0}, {"hint": (0.03, 0.1, 0.3, 1.0)}, about="labels and hints (FitNets)"
    ),
    control=Arm(train, {"learnt": False}, {"hint": HINTS, "own": (0.0, 1.0)}, about="as the method, random prototypes"),
    others={"labels": Arm(train, {"branch": 0.0, "own": 1.0}, about="labels alone")},
    comparisons=(
        Comparison(text="prototypes against hints alone"),
        Comparison(against="control", text="learnt against random prototypes"),
        Comparison(against="labels", text="prototypes against labels alone"),
        Comparison(method="baseline", against="labels", decisive=False, text="hints against labels alone"),
        Comparison(
            "plain_accuracy", against="baseline", decisive=False, text="the same of the answers without prototypes"
        ),
    ),
    miniature=Miniature(beds=(BED,), seeds=5, equal=("steps", "samples", "parameters"), tuning_seeds=2),
    metric="accuracy",
    left_out="Vision transformers and their attention maps; ImageNet teachers; detection and fine-grained classification.",
)
