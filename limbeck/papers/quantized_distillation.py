"""Quantized distillation, and differentiable quantization: a student of few bits learns from its teacher.

    quantized distillation        the student computes with Q(w), bucketed uniform levels, while it is distilled; the gradient goes
                                  straight through to w:  L = 0.7 T^2 KL(p_t || p_s) + 0.3 CE,  T = 2
    differentiable quantization   w is fixed, the levels' positions are learned:  dL/dp_j = sum_(i on level j) span_i dL/dQ(w)_i

Source: Polino, Pascanu and Alistarh, "Model compression via distillation and quantization", 2018, algorithms 1 and 2, buckets of
256. Deviations: the authors' code averages the KL over classes too, which makes its weight about 1 / C of the formula; here it is
the formula's. The levels are trained with AdamW, not with SGD at 1e-5, which a few hundred steps would not notice.
Run beside the authors' code on random weights, buckets of 256 at 4 bits agree to 5e-7.

The miniature: a thousand MNIST images of 14 x 14, a ResNet-8 of a quarter of its teacher's width, 2 bits. Baseline: the student distilled in float, then
quantized (post-training quantization; with or without its batch-norm statistics measured anew, whichever is better on
validation). Control: trained with labels on the same grid. `learned`: distilled in float for all but the last four epochs, which train the levels,
with the float student as their teacher. `float`: the student distilled and not quantized. Accuracy is that of weights decoded from
their bytes: Huffman-coded codes, two numbers per bucket, the levels; everything else as float32.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from limbeck.beds.images import MNIST
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.objectives import CrossEntropy, SoftTargets
from limbeck.quantization import on_buckets, store, stored_bytes
from limbeck.signals import call
from limbeck.training import Distil

BED = MNIST
BITS, BUCKET = 2, 256
EPOCHS, LEVEL_EPOCHS = 20, 4
DISTILLED = 0.7 * SoftTargets(temperature=2.0) + 0.3 * CrossEntropy()
LABELS = 1.0 * CrossEntropy()


def measured(run: Run, student: nn.Module) -> dict[str, float]:
    """Store the student, load it from its bytes, and measure both."""
    stored = store(student)
    packed = stored_bytes(student, stored)
    run.record(bytes=packed)
    whole = sum(value.numel() * value.element_size() for value in student.state_dict().values())
    return {**BED.measure(run, student), "bytes": packed, "compression": whole / packed}


def _distilled(run: Run, epochs: int) -> nn.Module:
    student = BED.new_student(run)
    BED.distil(run, DISTILLED, student=student, epochs=epochs)
    return student


def quantized(run: Run, distilled: bool = True, bits: int = BITS, epochs: int = EPOCHS) -> dict[str, float]:
    """Trained on the grid: from the teacher, or from the labels alone."""
    student = on_buckets(BED.new_student(run), bits, BUCKET)
    BED.distil(run, DISTILLED if distilled else LABELS, student=student, epochs=epochs)
    return measured(run, student)


def afterwards(run: Run, statistics: bool = False, bits: int = BITS, epochs: int = EPOCHS) -> dict[str, float]:
    """Distilled in float, then put on the grid; `statistics`: batch norms are measured anew on the training images."""
    student = on_buckets(_distilled(run, epochs), bits, BUCKET)
    if statistics:
        measure_batch_norms(student, BED.task().batches("train", 250))
    return measured(run, student)


def learned(run: Run, rate: float = 1e-3, bits: int = BITS, epochs: int = EPOCHS) -> dict[str, float]:
    """Distilled in float, then the levels are learned from the float student."""
    last = min(LEVEL_EPOCHS, epochs - 1)
    student = _distilled(run, epochs - last)
    teacher = copy.deepcopy(student)
    on_buckets(student, bits, BUCKET, learn="levels")
    config = {"optimizer": "adamw", "weight_decay": 0.0, "learning_rate": rate, "epochs": last}
    BED.fit(run, Distil(student, teacher, DISTILLED), **config)
    return measured(run, student)


def unquantized(run: Run, epochs: int = EPOCHS) -> dict[str, float]:
    student = _distilled(run, epochs)
    return {**BED.measure(run, student), "bytes": 4 * sum(p.numel() for p in student.parameters()), "compression": 1.0}


@torch.no_grad()
def measure_batch_norms(model: nn.Module, batches) -> None:
    """Replace the running statistics of batch normalizations by the mean over batches."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    for batch in batches:
        call(model, batch)
    model.eval()
    for norm, momentum in zip(norms, usual):
        norm.momentum = momentum


paper = Paper(
    id=61,
    title="Model compression via distillation and quantization",
    claim="At 2 bits a student distilled on the grid is better than one distilled in float and quantized afterwards, and than one trained on "
    "the grid with labels alone; learned levels are better than uniform ones.",
    composition="Distil(0.7 SoftTargets(2) + 0.3 CrossEntropy) of on_buckets(student, 2 bits); store with codecs.Huffman",
    metric="accuracy",
    method=Arm(quantized, about="distilled on the grid, 2 bits"),
    baseline=Arm(afterwards, tune={"statistics": (False, True)}, about="distilled, then quantized, 2 bits"),
    control=Arm(quantized, {"distilled": False}, about="trained on the grid with labels, 2 bits"),
    others={
        "learned": Arm(learned, tune={"rate": (1e-3, 1e-2)}, about="distilled, then levels learned, 2 bits"),
        "float": Arm(unquantized, about="distilled, 32 bits"),
        "four_bits": Arm(quantized, {"bits": 4}, about="distilled on the grid, 4 bits"),
    },
    comparisons=(
        Comparison(),
        Comparison(against="control"),
        Comparison(method="learned", against="baseline", text="learned levels against uniform ones"),
        Comparison(
            method="four_bits",
            against="float",
            margin=0.02,
            decisive=False,
            text="4 bits as good as float, to 2 points",
        ),
    ),
    miniature=Miniature(beds=(BED,), seeds=5),
    left_out="Recurrent networks and translation; levels shared out among tensors by gradient norm; stochastic rounding; wall-clock speed.",
)
