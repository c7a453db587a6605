"""AdaPT: a network is trained in fixed point, and every layer's word and fraction lengths follow it while it trains.

Idea: a global word is too long for some layers and too short for others, and what is needed changes. After every window of steps each layer takes

    PushDown   the coarsest fraction that keeps the histogram of its weights, KL(hist(w) || hist(w on 2^-f)) <= tolerance, and the shortest word
    PushUp     more fraction where gradients of the window cancel, so that progress is smaller than a step

In between it computes with weights rounded stochastically from a float32 master copy.

Source: Kummer et al., 2021; the abstract and the catalogue's summary were read, no code is public. The rule of PushUp is ours, see
`limbeck.quantization.adaptive_precision`. Pieces: `on_fixed_point`, `AdaptivePrecision`, `store_fixed_point`, `FixedPointGrid`.

The miniature: a ResNet-8 of width 4 on a thousand MNIST images of 14 x 14, 620 steps, windows of 32, float32 arithmetic (fixed point is
simulated). Baseline: float32, at two learning rates. Control: words of 4 bits everywhere, at two fractions. `eight`: 8 bits everywhere. Costs
are FLOPs weighted by word length, relative to 32 bits. One run was made for the verdict, without pilots.
What came out: as accurate as float32 (0.953 against 0.952) at words of 12.7 bits and 0.40 of the cost of training, far above 4 bits everywhere
(0.902). But histograms of a few hundred weights and cancelling gradients ask for more bits than the task: 8 bits everywhere are as accurate,
and with a float32 master copy rounding to the nearest does as well as stochastic rounding.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from limbeck.beds.images import MNIST, ImageBed
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.measure.flops import module_flops
from limbeck.objectives import CrossEntropy
from limbeck.quantization import (
    AdaptivePrecision,
    mean_words,
    on_fixed_point,
    precisions,
    relative_cost,
    store_fixed_point,
)
from limbeck.quantization.parametrized import WEIGHTS
from limbeck.signals import Tap
from limbeck.training import Supervised

BED = MNIST
WINDOW = 32  # steps, about an epoch


def operations(model: nn.Module, batch: Any) -> dict[str, float]:
    """FLOPs of every layer with a weight in one pass over a batch, by its path."""
    layers = {path: module for path, module in model.named_modules() if isinstance(module, WEIGHTS)}
    found: dict[str, float] = {}

    def visit(path: str, output: Tensor) -> None:
        found[path] = module_flops(layers[path], output)

    with Tap(model, layers, visit=visit) as tap:
        tap(batch)
    return found


def trained(
    run: Run,
    adaptive: bool = True,
    word: int = 8,
    fraction: int = 6,
    tolerance: float = 1e-2,
    stochastic: bool = True,
    bed: ImageBed = BED,
    **changes: Any,
) -> dict[str, float]:
    """In fixed point from the first step on: with precision that follows training, or a global word and fraction."""
    model = on_fixed_point(bed.new_student(run), word, fraction, stochastic)
    procedure: Any = Supervised(model, CrossEntropy())
    if adaptive:
        procedure = AdaptivePrecision(procedure, window=WINDOW, tolerance=tolerance)
    bed.fit(run, procedure, precision="fp32", **changes)
    words = {path: word for path, (word, _) in precisions(model).items()}
    training = mean_words(model)
    stored = store_fixed_point(model)
    counted = operations(model, bed.task().example(1))
    zeros = sum(float((model.get_parameter(name) == 0).sum()) for name in stored)
    numbers = {path: model.get_parameter(f"{path}.weight").numel() for path in words}
    return {
        **bed.measure(run, model),
        "bytes": sum(packed.nbytes for packed in stored.values()),
        "word": sum(numbers[path] * word for path, word in words.items()) / sum(numbers.values()),
        "cost": relative_cost(counted, words),
        "training_cost": relative_cost(counted, training),
        "zeros": zeros / sum(numbers.values()),
    }


def unquantized(run: Run, bed: ImageBed = BED, **changes: Any) -> dict[str, float]:
    """In float32."""
    model = bed.new_student(run)
    measured = bed.fit(run, Supervised(model, CrossEntropy()), precision="fp32", **changes)
    weights = [m.weight for m in model.modules() if isinstance(m, WEIGHTS)]
    size = 4 * sum(weight.numel() for weight in weights)
    return {**measured, "bytes": size, "word": 32.0, "cost": 1.0, "training_cost": 1.0, "zeros": 0.0}


paper = Paper(
    id=307,
    title="Adaptive Precision Training (AdaPT): A dynamic fixed point quantized training approach for DNNs",
    claim="Trained in fixed point with word and fraction lengths that follow each layer, a network is as accurate as in float32 (to one point) at a "
    "mean word of at most 16 bits, and better than in global words of 4 bits.",
    composition="store_fixed_point(AdaptivePrecision(Supervised(on_fixed_point(model), CrossEntropy()), window=32))",
    metric="accuracy",
    method=Arm(trained, tune={"tolerance": (1e-1, 1e-2)}, about="word and fraction follow training"),
    baseline=Arm(unquantized, tune={"learning_rate": (0.05, 0.1)}, about="float32"),
    control=Arm(trained, {"adaptive": False, "word": 4}, tune={"fraction": (2, 3)}, about="4 bits everywhere"),
    others={
        "eight": Arm(trained, {"adaptive": False}, tune={"fraction": (5, 6)}, about="8 bits everywhere"),
        "nearest": Arm(
            trained, {"stochastic": False}, about="word and fraction follow training, rounding to the nearest"
        ),
    },
    comparisons=(
        Comparison(margin=0.01, text="as accurate as float32, to one point"),
        Comparison("word", better="lower", margin=-16.0, text="at 16 bits less than float32"),
        Comparison(against="control", text="against 4 bits everywhere"),
        Comparison(against="eight", decisive=False, text="against 8 bits everywhere"),
        Comparison("word", against="eight", better="lower", decisive=False, text="shorter words than 8 bits"),
        Comparison(against="nearest", decisive=False, text="against rounding to the nearest"),
    ),
    miniature=Miniature(beds=(BED,), seeds=5),
    left_out="CIFAR and AlexNet; activations and gradients in fixed point; windows and histograms whose lengths adapt; the penalty on words; L1 (the "
    "procedure has it); measured speed: costs are the analytic model's.",
)
