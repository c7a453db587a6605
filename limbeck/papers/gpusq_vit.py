"""GPUSQ-ViT: a vision transformer in the 2:4 pattern and in few bits, taught by its dense self at every step.

    1  prune every linear layer of the blocks to 2:4 by magnitude, and train on with fixed zeros
    2  train on with weights and activations on their grids, the zeros kept;  stored: two codes of every four, and their places

    L = a CE + b T^2 KL(teacher || student) + g sum_l f_l MSE(features of block l),   l: the later blocks

In stage 1 all f_l are 1. In stage 2 f_l is what stage 1 left of block l's loss, over the mean of these: blocks that the pruned model could
not imitate count more. a = 0 needs no labels.

Source: Yu et al., "Boost Vision Transformer with GPU-Friendly Sparsity and Quantization", CVPR 2023; the abstract, a reading note and the
mechanism as the catalogue has it were read, there is no public code. Choices here: factors are normalized to mean 1; the later half of
the blocks in place of those whose activation maps matter most; static asymmetric activations whose ranges follow a moving average,
steps of weights per output. Pieces: `Sparsify`, `MaskKeeper`, `residuals` and `reweighted`, `TwoOfFourGrid`, `Quantize`, `prepare_qat`.

The miniature: 12 x 12 MNIST images in 16 patches, a transformer of four blocks of width 48 as the dense model (one for all seeds), two
stages of 100 steps each, 4 bits for weights and activations of the blocks' linear layers. Baseline: the same two stages with labels alone,
its rate tuned. Control: both stages' steps spent on stage 1, then quantized without training. `unlabelled`: a = 0. `even`: all f_l = 1 in
both stages. `logits`, `features`: one of the two kinds of teaching. `eight`: 8 bits. `one_shot`: pruned and quantized, never trained.
a = 1, b = 1 at T = 2 and g = 1 were written down before any run; nothing of the method was tuned.

One run was made: inconclusive. At 4 bits 94.7 % against 94.0 % with labels alone, but quantizing after the same training has 94.5 %, which is
not told apart; 8 bits (95.3 %) and no labels (94.8 %) are as good as claimed, at 66 kB in place of 460 (8 bits: 94). Weights from residuals,
and features in the place of answers, made no difference.
"""

from __future__ import annotations

import copy
from dataclasses import replace

from torch import nn

from limbeck.beds.patches import UNIT_PATCHES
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.measure.latency import evaluating
from limbeck.objectives import CrossEntropy, Hint, Objective, SoftTargets
from limbeck.plan import apply
from limbeck.pruning import MaskKeeper, Sparsify
from limbeck.quantization import Quantize, finish_qat, prepare_qat
from limbeck.training import Distil, residuals, reweighted

BED = replace(UNIT_PATCHES, name="mnist 12x12 in 16 patches, four blocks", teacher=(4, 48))
LAYERS, STEPS, LATER = ("blocks.*",), 100, range(2, 4)
FEATURES = tuple(Hint(f"blocks.{block}") for block in LATER)


def teaching(labels: float = 1.0, logits: float = 1.0, features: float = 1.0) -> Objective:
    """The mixture: labels, softened answers, features of the later blocks."""
    mixture = labels * CrossEntropy() + logits * SoftTargets(temperature=2.0)
    for hint in FEATURES:
        mixture = mixture + features * hint
    return mixture


def trained(run: Run, model: nn.Module, teacher: nn.Module, objective: Objective, steps: int, rate: float) -> Distil:
    """Train on with the zeros that are there."""
    procedure = Distil(model, teacher if objective.reads.teacher else None, objective)
    MaskKeeper(model).follow(procedure)
    run.train(procedure, BED.task(), BED.config(steps, learning_rate=rate))
    return procedure


def compressed(
    run: Run,
    labels: float = 1.0,
    logits: float = 1.0,
    features: float = 1.0,
    weighted: bool = True,
    bits: int = 4,
    aware: bool = True,
    steps: int = STEPS,
    rate: float = 1e-3,
) -> dict[str, float]:
    """Both stages; aware: whether stage 2 trains on the grids. Without, its steps belong to stage 1. steps: of each stage."""
    dense, objective = BED.supervised(run), teaching(labels, logits, features)
    model = copy.deepcopy(dense)
    model = apply(model, Sparsify(0.5, "2:4", paths=LAYERS).plan(model))
    if steps:
        first = trained(run, model, dense, objective, steps if aware else 2 * steps, rate)
    quantize = Quantize(bits=bits, grid="two_of_four", activation_bits=bits, only=LAYERS, examples=256)
    plan = quantize.plan(model, BED.task())
    if steps and aware:
        if weighted and features:
            objective = reweighted(objective, residuals(first, BED.task()), Hint)
        prepare_qat(model, plan, average=0.99)
        trained(run, model, dense, objective, steps, rate)
        model, plan = finish_qat(model)
    return measured(run, apply(model, plan))


def measured(run: Run, model: nn.Module) -> dict[str, float]:
    """Accuracy, and the bytes of everything the model stores, packed weights as they are packed."""
    stored = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    with evaluating(model):
        found = BED.task().evaluate(lambda batch: model(batch["pixel_values"]), split=run.split)
    return {**found, "bytes": stored}


def dense(run: Run, steps: int = STEPS) -> dict[str, float]:
    """The model before everything."""
    return measured(run, BED.supervised(run))


LABELS_ALONE = {"logits": 0.0, "features": 0.0}

paper = Paper(
    id=158,
    title="Boost Vision Transformer with GPU-Friendly Sparsity and Quantization",
    claim="At 4 bits a 2:4 sparse vision transformer trained on its grids and taught by its dense self is better than one trained on them with "
    "labels alone and than one quantized after its training; at 8 bits it is as good as the dense model, and without labels as good as with.",
    composition='Sparsify(0.5, "2:4") | Distil(CrossEntropy + SoftTargets(2) + Hint of the later blocks) | '
    'Quantize(bits=4, grid="two_of_four", activation_bits=4), prepare_qat | Distil(reweighted by residuals)',
    metric="accuracy",
    method=Arm(compressed, about="both stages taught, 4 bits"),
    baseline=Arm(compressed, LABELS_ALONE, tune={"rate": (3e-4, 1e-3, 3e-3)}, about="both stages with labels, 4 bits"),
    control=Arm(compressed, {"aware": False}, about="pruned and taught, then quantized, 4 bits"),
    others={
        "unlabelled": Arm(compressed, {"labels": 0.0}, about="without labels, 4 bits"),
        "even": Arm(compressed, {"weighted": False}, about="all blocks count alike, 4 bits"),
        "logits": Arm(compressed, {"features": 0.0}, about="taught by answers, 4 bits"),
        "features": Arm(compressed, {"logits": 0.0}, about="taught by features, 4 bits"),
        "eight": Arm(compressed, {"bits": 8}, about="both stages taught, 8 bits"),
        "one_shot": Arm(compressed, {"steps": 0}, about="pruned and quantized, never trained, 4 bits"),
        "dense": Arm(dense, about="not compressed"),
    },
    comparisons=(
        Comparison(text="against labels alone"),
        Comparison(against="control", text="against quantizing afterwards"),
        Comparison(method="eight", against="dense", margin=0.01, text="8 bits as good as dense, to a point"),
        Comparison(
            method="unlabelled", against="method", margin=0.01, text="without labels as good as with, to a point"
        ),
        Comparison(against="even", decisive=False, text="what weights from residuals add"),
        Comparison(method="features", against="logits", decisive=False, text="features against answers"),
        Comparison("bytes", better="lower", against="dense", decisive=False, text="bytes against the dense model's"),
    ),
    miniature=Miniature(
        beds=(BED,),
        seeds=5,
        equal=(),
        why_unequal="arms that are trained take 200 steps on the same images; `one_shot` and `dense` take none",
    ),
    left_out="ImageNet, detection and segmentation; Swin; blocks chosen by activation maps; speed on sparse tensor cores.",
)
