"""Double Rounding: one model stored at 8 bits that runs at 8, 4 and 2, each smaller width a shift of the stored codes.

    W_8 = clip(round(W / s)),   W_l = clip(round(W_8 / 2^(8-l))),   W^ = W_l 2^(8-l) s        one scale s of the weights for all widths

Idea: the second rounding, in the place of cutting bits off, keeps small widths centred; one scale makes the widths shifts of each other, so that only
the highest is stored. Widths take turns with an update each, and the scales' learning rate adapts to the width (ALRS): those of small widths have
larger gradients and would drive the shared scale. For mixed widths, layers with a large Hessian trace draw more bits (HASB).

Source: Huang et al., "Nearly Lossless Adaptive Bit Switching", 2025, its text with appendix; the authors' repository holds no code. Pieces:
`prepare_switching`, `SwitchBits`, `store_switching`, `switch` of `limbeck.quantization`, `weight_traces`, `allocate` of `limbeck.search`. Deviations are
those of `SwitchBits`; besides, input scales of a width begin at calibrated ranges and keep their zero point, and widths are allocated by trace times
squared rounding error.

The miniature: a ResNet-8 trained on a thousand MNIST images of 14 x 14, then trained on its grids, weights and activations of 8, 4 and 2 bits, first
and last layer in float, one batch normalization per width, Adam, weight decay 5e-5 as in the paper. Accuracy is the mean over the three widths, of
the stored codes. Baseline: the usual joint training, which sums the losses of all widths, with as many passes. Control: trained at 8 bits alone, then
shifted. `separate`: a model of its own per width, together as many passes. `no_scaling`: turns without ALRS. `hasb`, `uniform_mixed`: mixed widths, measured
at a mean of 4 bits per layer.
One run was made for the verdict: inconclusive. Shifting a model trained at 8 bits loses 19 points (0.742 against 0.929, mean of the widths; 0.34 at 2
bits), a model per width is 0.3 points better, within the margin of one; but summed losses are as good (0.927), turns without ALRS are, if anything, better
(0.934, interval -0.010 to 0.0001), and Hessian traces choose no better widths than equal draws (0.9430 and 0.9428).
"""

from __future__ import annotations

import copy

from limbeck.beds.images import MNIST as BED
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.objectives import CrossEntropy
from limbeck.quantization import Quantize, SwitchBits, prepare_switching, store_switching, switch
from limbeck.quantization.bit_switching import SwitchedNorm, double_round, switchable
from limbeck.search.allocate import Option, allocate
from limbeck.search.sensitivity import weight_traces

WIDTHS, MEAN_BITS, EPOCHS = (8, 4, 2), 4, 9
FLOAT = ("conv1", "fc")


def prepared(run: Run):
    """The seed's float model, made switchable."""
    model = copy.deepcopy(BED.trained_student(run))
    settings = {"weights": "tensor", "examples": 256, "ignore": FLOAT}
    plans = {b: Quantize(bits=b, activation_bits=b, **settings).plan(model, BED.task()) for b in WIDTHS}
    return prepare_switching(model, plans)


def trained(run: Run, model, learning_rate: float, epochs: float, **settings) -> None:
    """Train a switchable model; `epochs` count passes of one width each."""
    procedure = SwitchBits(model, None, CrossEntropy(), **settings)
    passes = 1 if procedure.separate else len(WIDTHS)
    schedule = {"optimizer": "adamw", "learning_rate": learning_rate, "weight_decay": 5e-5, "warmup": 0.0}
    before = run.costs.get("steps", 0.0)
    BED.fit(run, procedure, **schedule, precision="fp32", channels_last=False, epochs=epochs / passes)
    run.record(passes=(run.costs["steps"] - before) * passes)


def measured(run: Run, model, widths=WIDTHS) -> dict[str, float]:
    """Accuracy of the stored codes at each width."""
    store_switching(model)
    return {f"accuracy_{width}": BED.measure(run, switch(model, width))["accuracy"] for width in widths}


def whole(found: dict[str, float]) -> dict[str, float]:
    return {"accuracy": sum(found.values()) / len(found), **found}


def switched(run: Run, learning_rate: float = 2e-3, epochs: float = EPOCHS, **settings) -> dict[str, float]:
    """One model for all widths."""
    model = prepared(run)
    trained(run, model, learning_rate, epochs, **settings)
    return whole(measured(run, model)) | {"float": BED.measure(run, BED.trained_student(run))["accuracy"]}


def highest_alone(run: Run, learning_rate: float = 2e-3, epochs: float = EPOCHS) -> dict[str, float]:
    """Trained at the highest width; the others are shifts of it, with its normalizations."""
    model = prepared(run)
    trained(run, model, learning_rate, epochs, widths=WIDTHS[:1])
    for norm in (module for module in model.modules() if isinstance(module, SwitchedNorm)):
        for width in WIDTHS[1:]:
            norm.norms[str(width)].load_state_dict(norm.norms[str(WIDTHS[0])].state_dict())
    return whole(measured(run, model))


def separate(run: Run, learning_rate: float = 2e-3, epochs: float = EPOCHS) -> dict[str, float]:
    """A model per width, with a third of the passes each."""
    found = {}
    for width in WIDTHS:
        model = prepared(run)
        trained(run, model, learning_rate, epochs / len(WIDTHS), widths=(width,))
        found |= measured(run, model, (width,))
    return whole(found)


def mixed(run: Run, hessian: bool, learning_rate: float = 2e-3, epochs: float = EPOCHS) -> dict[str, float]:
    """Widths drawn layer by layer, by Hessian traces or all alike; measured at the best allocation of a mean of 4 bits."""
    model, start = prepared(run), BED.trained_student(run)
    batches = list(BED.task().batches("train", 64, limit=256))
    traces = weight_traces(start, BED.task().loss, batches, list(switchable(model)), samples=8, seed=run.seed)
    trained(run, model, learning_rate, epochs, mixed=traces if hessian else "uniform")
    items = {}
    for path, layer in switchable(model).items():
        weight, scale = layer.weight.detach(), layer.weight_scale.detach()
        errors = {b: float((double_round(weight, scale, WIDTHS[0], b) - weight).square().mean()) for b in WIDTHS}
        items[path] = [Option(b, b, max(traces[path], 0.0) * error) for b, error in errors.items()]
    choice = allocate(items, MEAN_BITS * len(items)).choice
    store_switching(model)
    return {"accuracy": BED.measure(run, switch(model, choice))["accuracy"]}


RATES = {"learning_rate": (1e-3, 4e-3)}

paper = Paper(
    id=278,
    title="Nearly Lossless Adaptive Bit Switching",
    claim="One model of shared 8-bit codes, widths trained in turn with adaptive rates of the scales, is better over 8, 4 and 2 bits than the usual joint "
    "training and than cutting an 8-bit model down, and as good as a model per width to one point.",
    composition="SwitchBits(prepare_switching(model, plans), None, CrossEntropy()); store_switching(model)",
    metric="accuracy",
    method=Arm(switched, tune=RATES, about="Double Rounding with ALRS, widths in turn"),
    baseline=Arm(switched, {"separate": False}, tune=RATES, about="losses of all widths summed"),
    control=Arm(highest_alone, tune=RATES, about="trained at 8 bits, shifted"),
    others={
        "separate": Arm(separate, tune=RATES, about="a model per width"),
        "no_scaling": Arm(switched, {"scaling": False}, tune=RATES, about="widths in turn, without ALRS"),
        "hasb": Arm(mixed, {"hessian": True}, about="mixed widths, drawn by Hessian traces, mean of 4 bits"),
        "uniform_mixed": Arm(mixed, {"hessian": False}, about="mixed widths, drawn alike, mean of 4 bits"),
    },
    comparisons=(
        Comparison(),
        Comparison(against="control", text="against shifting an 8-bit model"),
        Comparison(against="separate", margin=0.01, text="as good as a model per width, to one point"),
        Comparison(against="no_scaling", decisive=False, text="what adaptive rates bring"),
        Comparison(against="baseline", metric="accuracy_2", decisive=False, text="at 2 bits"),
        Comparison(against="no_scaling", metric="accuracy_2", decisive=False, text="adaptive rates at 2 bits"),
        Comparison(
            method="hasb", against="uniform_mixed", decisive=False, text="drawn by Hessian traces, against alike"
        ),
    ),
    miniature=Miniature(
        beds=(BED,),
        seeds=5,
        equal=("passes",),
        why_unequal="every arm makes as many passes forward and backward of one width; summed losses are one step for three passes",
    ),
    left_out="ImageNet, detection, segmentation and language models; 6 bits; distillation; transitional batch normalization of mixed widths.",
)
