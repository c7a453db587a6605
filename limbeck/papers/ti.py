"""Teacher intervention (TI-G): while a transformer learns to compute with ternary weights, its layers first compute with the teacher's signals.

Idea: in quantization-aware training below 2 bits, errors of lower layers spoil what the layers above learn from. So for the first steps a signal
inside every student layer is the teacher's. Going from the output to the input of the self-attention, more and more of a layer has to
answer for itself:

    until s/6   output of the attention (TI-O)      until s/3   its context, maps times values (TI-C)      until s   its maps (TI-M)
    L = CE(softmax(z_t), z_s) + sum over layers  MSE(hidden state) + MSE(attention scores) + MSE(attention block's output)

Queries and keys (and values, but for TI-M) pass no gradient back then. After the share s of the steps training goes on as usual.
Source: Kim et al., "Teacher Intervention: Improving Convergence of Quantization Aware Training for Ultra-Low Precision Transformers", EACL 2023;
its mechanism as the catalogue has it and the authors' public code (phases, stopped gradients, terms) were read.
Pieces: `TeacherIntervention`, `gradual_intervention` of `limbeck.training`, `Quantize(grid="ternary", method="twn", activations="dynamic")`,
`prepare_qat`, `Hint`, `TokenRelations(loss="mse")`, `SoftTargets`.

The miniature: an encoder on the topics of AG News and a vision transformer on MNIST, each trained in float, are teachers (`accuracy` is the
mean of both tasks); their copies get ternary weights (one scale per tensor) and int8 inputs in all layers of all blocks and are distilled for
40 steps. All arms have the same loss, order of data, steps and one schedule; a seed varies order and dropout. Baseline: no intervention
(TernaryBERT's distillation with the term on attention outputs). Control: TI-O alone; `maps`: TI-M alone, both over the same share.
Deviations: blocks with the norm first, so the block's output is x + attention(norm(x)); one schedule over both steps of the method, where
the authors start the second anew; embeddings, head, queries, keys, values and maps themselves stay float; inputs are int8 per token.
Steps and settings to choose from were written down after a look at one seed of 60 steps on validation, where all arms were alike.
One run was made for the verdict: it does not hold. Training without intervention is back at 0.732 on texts (teacher 0.741) and at 0.939 on digits
(0.959) after 40 steps, so in networks this small there is no convergence to rescue, and the steps that gradual intervention takes (0.6 of
them by tuning) cost 1.1 points on digits and gain 0.2, within the spread, on texts. The three kinds of intervention do not differ surely.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from limbeck.beds.patches import UNIT_PATCHES
from limbeck.beds.text import AG_NEWS
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.objectives import Hint, Objective, SoftTargets, TokenRelations
from limbeck.plan import apply
from limbeck.quantization import Quantize, finish_qat, prepare_qat
from limbeck.signals import call
from limbeck.training import Distil, Intervention, TeacherIntervention, gradual_intervention


def objective(depth: int, heads: int) -> Objective:
    """Logits, and of every layer the hidden state, the attention scores and the state after attention; all weights 1."""
    found = SoftTargets(temperature=1.0) + Hint("blocks.0.norm1:input")
    for i in range(depth):
        pair = (f"blocks.{i}.attention.query", f"blocks.{i}.attention.key")
        found = found + Hint(f"blocks.{i}") + Hint(f"blocks.{i}.norm2:input")
        found = found + TokenRelations(pair, pair, heads=heads, loss="mse")
    return found


def phases(how: str, share: float) -> tuple[Intervention, ...]:
    """Gradual intervention, or one of its phases for the whole share."""
    gradual = gradual_intervention(share=share)
    alone = {"output": gradual[0], "maps": gradual[2]}
    return gradual if how == "gradual" else (Intervention(share, alone[how].signals, alone[how].detached),)


def recovered(
    run: Run, bed: Any, teacher: nn.Module, how: str | None, share: float, steps: int, rate: float
) -> dict[str, float]:
    """The teacher's copy on ternary weights, distilled and measured. how: "gradual", "output", "maps"; None: no intervention."""
    model = copy.deepcopy(teacher).train()
    transform = Quantize(grid="ternary", method="twn", weights="tensor", activations="dynamic", only="blocks.*")
    prepare_qat(model, transform.plan(model))
    loss = objective(len(teacher.blocks), bed.heads)
    procedure = TeacherIntervention(model, teacher, loss, phases(how, share)) if how else Distil(model, teacher, loss)
    run.train(procedure, bed.task(), bed.config(steps, learning_rate=rate))
    model = apply(*finish_qat(model)).eval()
    return bed.task().evaluate(lambda batch: call(model, batch), run.split)


def compare(
    run: Run, how: str | None, rate: float, share: float = 0.3, steps: int = 40, text=AG_NEWS, images=UNIT_PATCHES
) -> dict[str, float]:
    """Text and images, one after the other; `accuracy` is the mean of both."""
    found = {
        "text": recovered(run, text, text.teacher(run), how, share, steps, rate),
        "vision": recovered(run, images, images.supervised(run), how, share, steps, rate),
    }
    each = {f"{kind}_{name}": each[name] for kind, each in found.items() for name in ("accuracy", "loss")}
    return {"accuracy": (each["text_accuracy"] + each["vision_accuracy"]) / 2, **each}


SHARES = {"rate": (1e-3, 4e-3), "share": (0.3, 0.6)}

paper = Paper(
    id=313,
    title="Teacher Intervention: Improving Convergence of Quantization Aware Training for Ultra-Low Precision Transformers",
    claim="With few steps of training, ternary transformers of texts and of images are more accurate with gradual teacher intervention than with "
    "the same distillation without it, and than with one kind of intervention alone.",
    composition='TeacherIntervention(prepare_qat(model, Quantize(grid="ternary", method="twn", weights="tensor", activations="dynamic")), teacher, '
    'SoftTargets(1) + Hint(hidden states) + TokenRelations(scores, loss="mse"), gradual_intervention(share))',
    metric="accuracy",
    method=Arm(compare, {"how": "gradual"}, SHARES, "gradual intervention: output, context, maps"),
    baseline=Arm(compare, {"how": None}, {"rate": (5e-4, 1e-3, 2e-3, 4e-3)}, "no intervention"),
    control=Arm(compare, {"how": "output"}, SHARES, "attention outputs alone"),
    others={"maps": Arm(compare, {"how": "maps"}, SHARES, "attention maps alone")},
    comparisons=(
        Comparison(text="against distillation without intervention"),
        Comparison(against="control", text="against intervention in attention outputs alone"),
        Comparison(against="maps", decisive=False, text="against intervention in attention maps alone"),
        Comparison("text_accuracy", decisive=False, text="topics of news, against no intervention"),
        Comparison("vision_accuracy", decisive=False, text="digits, against no intervention"),
    ),
    miniature=Miniature(beds=(AG_NEWS, UNIT_PATCHES), seeds=5),
    left_out="BERT and GLUE, ImageNet; ternary embeddings, 8-bit queries, keys, values and maps; mixed and inverted orders; fewer steps against more.",
)
