"""Quantized distillation, and differentiable quantization: a student of few bits learns from its teacher.

    quantized distillation        the student computes with Q(w), uniform levels within the range of each group, while it is distilled; the gradient goes
                                  straight through to w:  L = 0.7 T^2 KL(p_t || p_s) + 0.3 CE,  T = 2
    differentiable quantization   w is fixed, the levels' positions are learned:  dL/dp_j = sum_(i on level j) span_i dL/dQ(w)_i

Source: Polino, Pascanu and Alistarh, "Model compression via distillation and quantization", 2018, algorithms 1 and 2, buckets of
256. Pieces: the grid "range_levels", `prepare_qat`, `finish_qat` of `limbeck.quantization`; `Huffman` of `limbeck.codecs`. Deviations: buckets end with a
row of the weight matrix; the authors' code averages the KL over classes too, which makes its weight about 1 / C of the formula; here it is
the formula's. The levels are trained with AdamW, not with SGD at 1e-5, which a few hundred steps would not notice.

The miniature: a thousand MNIST images of 14 x 14, a ResNet-8 of a quarter of its teacher's width, 2 bits. Baseline: the student distilled in float, then
quantized (post-training quantization; with or without its batch-norm statistics measured anew, whichever is better on
validation). Control: trained with labels on the same grid. `learned`: distilled in float for all but the last four epochs, which train the levels,
with the float student as their teacher. `float`: the student distilled and not quantized. Accuracy is that of weights decoded from what is
stored: Huffman-coded codes, two numbers per bucket, the levels; everything else as float32.
What came out: at 2 bits 0.946, quantized afterwards 0.848, with labels alone 0.932; learned levels 0.883, better in the mean than uniform ones but not
surely; 4 bits 0.960, float 0.958. 5.7 times smaller at 2 bits.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from limbeck.beds.images import MNIST
from limbeck.codecs.entropy import Huffman
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.objectives import CrossEntropy, SoftTargets
from limbeck.plan import apply
from limbeck.quantization import Quantize, finish_qat, prepare_qat
from limbeck.quantization.modules import QuantizedModule
from limbeck.signals import call
from limbeck.training import Distil

BED = MNIST
BITS, BUCKET = 2, 256
EPOCHS, LEVEL_EPOCHS = 20, 4
DISTILLED = 0.7 * SoftTargets(temperature=2.0) + 0.3 * CrossEntropy()
LABELS = 1.0 * CrossEntropy()


def prepared(model: nn.Module, bits: int, learn: bool = False) -> nn.Module:
    """The model on the grid, in place: its weights are trained, or with `learn` the levels alone."""
    grid = {"name": "range_levels", "width": bits}
    method = "quantile" if learn else "uniform"
    quantize = Quantize(grid=grid, method=method, weights=BUCKET, activations=None, scale_type="float32")
    return prepare_qat(model.requires_grad_(not learn), quantize.plan(model), learned=learn)


def measured(run: Run, student: nn.Module) -> dict[str, float]:
    """Store the student and measure it, and its bytes with entropy-coded weights."""
    whole = sum(value.numel() * value.element_size() for value in student.state_dict().values())
    stored = apply(*finish_qat(student))
    packed = 0
    for name, value in stored.state_dict().items():
        packed += 0 if name.endswith("weight_codes") else value.numel() * value.element_size()
    for module in stored.modules():
        if isinstance(module, QuantizedModule):
            packed += len(Huffman().encode(module.codes.flatten()))
    run.record(bytes=packed)
    return {**BED.measure(run, stored), "bytes": packed, "compression": whole / packed}


def _distilled(run: Run, epochs: int) -> nn.Module:
    student = BED.new_student(run)
    BED.distil(run, DISTILLED, student=student, epochs=epochs)
    return student


def quantized(run: Run, distilled: bool = True, bits: int = BITS, epochs: int = EPOCHS) -> dict[str, float]:
    """Trained on the grid: from the teacher, or from the labels alone."""
    student = prepared(BED.new_student(run), bits)
    BED.distil(run, DISTILLED if distilled else LABELS, student=student, epochs=epochs)
    return measured(run, student)


def afterwards(run: Run, statistics: bool = False, bits: int = BITS, epochs: int = EPOCHS) -> dict[str, float]:
    """Distilled in float, then put on the grid; `statistics`: batch norms are measured anew on the training images."""
    student = prepared(_distilled(run, epochs), bits)
    if statistics:
        measure_batch_norms(student, BED.task().batches("train", 250))
    return measured(run, student)


def learned(run: Run, rate: float = 1e-3, bits: int = BITS, epochs: int = EPOCHS) -> dict[str, float]:
    """Distilled in float, then the levels are learned from the float student."""
    last = min(LEVEL_EPOCHS, epochs - 1)
    student = _distilled(run, epochs - last)
    teacher = copy.deepcopy(student)
    prepared(student, bits, learn=True)
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
    composition='finish_qat(Distil(prepare_qat(student, Quantize(grid={"name": "range_levels", "width": 2}, method="uniform", weights=256, activations=None)'
    ".plan(student)), teacher, 0.7 * SoftTargets(2) + 0.3 * CrossEntropy())) + Huffman",
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
