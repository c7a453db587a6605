"""NUPES: quantized levels that are uniform under a power of the weight, the power searched without data and then learned with the codes.

    q = round(K sign(w) |w / s|^a),   w^ = s sign(q) |q / K|^(1/a)

Idea: weights are bell-shaped, so levels should be dense around 0; powers are the only maps that keep products, so that integer arithmetic survives.
Without data a has the least squared error of the weights. With data, a and the codes are learned on each layer's output, the codes over the
whole grid and not up or down only, because a change of a moves weights by more than one level.

Source: Yvinec et al., "NUPES: Non-Uniform Post-Training Quantization via Power Exponent Search", 2023. Only its abstract could be read. Pieces:
`SearchedPowerGrid`, `PowerSearch`, `shared_exponent` of `limbeck.quantization`. Deviations, all ours where the text was not at hand: AdaRound's
annealed penalty on real positions in the place of the authors' shift variable; weights alone are quantized; codes are nearest on the real line where the
formula rounds the power; an exponent beside every scale, one per output channel.

The miniature: a character model of four layers of width 128 on tinyshakespeare, all linear layers inside the blocks at 3 bits, scales per output
channel, 128 sequences of 128 characters to calibrate with, which are what a seed varies. Method: exponents and codes learned. Baseline: the same
exponents, fixed, and codes up or down (what AdaRound learns). Control: without data, searched exponents and nearest codes. `power_quant`: one searched
exponent for all layers. `uniform`, `log2`: other grids without data, ranges tuned. `adaround`: learned rounding on uniform levels. `whole_grid`: codes
over the whole grid, exponents fixed. Learning rates are
tuned alike; that of `adaround` is its usual one and its ranges are tuned.

One run was made for the verdict: it does not hold. Learning lowers perplexity from 6.749 to 6.620, but codes up or down at fixed exponents come to 6.592:
with AdaRound's penalty few weights travel further, and moving exponents cost more than they brought. Without data searched powers (6.749) are better than
uniform levels (6.858), not than powers of two (6.743).
"""

from __future__ import annotations

import copy

from limbeck.beds.language import CHARACTERS as BED
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.plan import apply
from limbeck.quantization import AdaRound, PerChannel, PowerSearch, Quantize, shared_exponent
from limbeck.quantization.hessian import matrix
from limbeck.tasks.drawn import Drawn

BITS, EXAMPLES, STEPS = 3, 128, 150
SEARCHED = {"name": "searched_power", "bits": BITS}


def quantized(
    run: Run, grid=SEARCHED, rounding="nearest", method: str = "minmax", examples: int = EXAMPLES
) -> dict[str, float]:
    """Quantize the blocks of the bed's model and measure it."""
    model = copy.deepcopy(BED.teacher(run))
    transform = Quantize(bits=BITS, grid=grid, activations=None, method=method, rounding=rounding,
                         symmetric=None if grid else True, examples=examples, batch_size=16, only="blocks.*")  # fmt: skip
    model = apply(model, transform.plan(model, Drawn(BED.task, run.seed)))
    stored = sum(module.nbytes for module in model.modules() if hasattr(module, "weight_codes"))
    run.record(bytes=stored, examples=examples)
    return {**BED.measure(run, model), "bytes": stored}


def learned(
    run: Run,
    learning_rate: float = 0.05,
    exponents: bool = True,
    reach: int | None = None,
    steps: int = STEPS,
    **settings,
) -> dict[str, float]:
    """Codes learned on layers' outputs: over the whole grid or within reach; exponents with them, or as they were searched."""
    rate = 3e-3 if exponents else 0.0
    rounding = PowerSearch(iterations=steps, learning_rate=learning_rate, exponent_rate=rate, reach=reach)
    return quantized(run, rounding=rounding, **settings)


def uniform(run: Run, learning_rate: float = 0.03, steps: int = STEPS, **settings) -> dict[str, float]:
    """AdaRound on uniform levels."""
    return quantized(run, None, AdaRound(iterations=steps, learning_rate=learning_rate), **settings)


def power_quant(run: Run, **settings) -> dict[str, float]:
    """One exponent for all layers, searched without data."""
    model = BED.teacher(run)
    weights = [
        matrix(module) for path, module in model.named_modules() if "blocks." in path and hasattr(module, "in_features")
    ]
    exponent = shared_exponent(weights, BITS, PerChannel(0))
    run.note(f"exponent {exponent:.3f}")
    return quantized(run, {"name": "power", "bits": BITS, "exponent": exponent}, **settings)


def unquantized(run: Run, examples: int = EXAMPLES) -> dict[str, float]:
    """The float model."""
    run.record(examples=examples)
    return BED.measure(run, BED.teacher(run))


RATES = {"learning_rate": (0.02, 0.05)}
RANGES = {"method": ("minmax", "mse")}

paper = Paper(
    id=298,
    title="NUPES : Non-Uniform Post-Training Quantization via Power Exponent Search",
    claim="At 3 bits, power exponents and codes learned over the whole grid lose less than codes learned up or down at fixed exponents; without data, "
    "searched power levels lose less than uniform and power-of-two ones.",
    composition='Quantize(bits=3, grid="searched_power", activations=None, rounding=PowerSearch())',
    metric="perplexity",
    better="lower",
    method=Arm(learned, tune=RATES, about="exponents and codes learned, 3 bits"),
    baseline=Arm(
        learned, {"exponents": False, "reach": 1}, tune=RATES, about="exponents searched, codes up or down, 3 bits"
    ),
    control=Arm(quantized, about="exponents searched, nearest codes, 3 bits"),
    others={
        "whole_grid": Arm(
            learned, {"exponents": False}, tune=RATES, about="exponents searched, codes over the whole grid, 3 bits"
        ),
        "adaround": Arm(uniform, tune=RANGES, about="AdaRound, uniform levels, 3 bits"),
        "power_quant": Arm(power_quant, about="one exponent for all layers, nearest codes, 3 bits"),
        "uniform": Arm(quantized, {"grid": None}, tune=RANGES, about="uniform levels, nearest codes, 3 bits"),
        "log2": Arm(quantized, {"grid": "power_of_two"}, tune=RANGES, about="powers of two, nearest codes, 3 bits"),
        "float": Arm(unquantized, about="32 bits"),
    },
    comparisons=(
        Comparison(),
        Comparison(against="control"),
        Comparison(method="control", against="uniform", text="without data, against uniform levels"),
        Comparison(method="control", against="log2", text="without data, against powers of two"),
        Comparison(against="whole_grid", decisive=False, text="what learning the exponents adds"),
        Comparison(against="adaround", decisive=False, text="against AdaRound on uniform levels"),
        Comparison(
            method="control",
            against="power_quant",
            decisive=False,
            text="an exponent per channel against one for all layers",
        ),
    ),
    miniature=Miniature(
        beds=(BED,),
        seeds=5,
        equal=("examples",),
        why_unequal="nothing is trained on the task: arms see the same calibration examples; searched exponents add four bytes per channel",
    ),
    left_out="Activations on power grids and integer kernels; networks on ImageNet and Llama; the authors' own parametrization of codes.",
)
