"""PVQ for language models: weights as lengths and points of an integer pyramid, after a rotation, with error feedback.

Idea: rotated weights look like Gaussian ones, so short vectors of them lie evenly on spheres. Each vector v of d weights becomes a length and
a point of the pyramid {p in Z^d : sum |p_i| = K} along v, numbered by counting, so there is no codebook to store:

    v^ = s l p / ||p||_2,    l in sqrt(F^-1((i + 1/2) / 2^b)),  F of Beta(d/2, (n - d)/2),  s: the norm of the row of n

Vectors are put there one after another; those that are left make up for the errors, and lengths are fitted to the layer's output (the Hessian).

Source: van der Ouderaa et al., "Pyramid Vector Quantization for LLMs", 2024; the abstract, the openings that are public and the mechanism
as the catalogue has it were read, there is no public code. Where a level lies in its cell of the Beta distribution is a choice here (its
middle in probability), and the level nearest to the part of v along p is taken. Pieces: `PyramidGrid`, `VectorFeedback`, `Rotate` of
`limbeck.quantization`. Deviations: a character model of four layers of width 128 on tinyshakespeare in place of Llama; the inputs of the second
linear layer of each block are not rotated (that would be a product at run time); 128 sequences of 128 characters to calibrate with,
which, like the rotation, are what a seed varies.

3.25 bits a weight with scales: d = 16, K = 26, lengths of 3 bits, a bfloat16 norm per row (the rows of 512 take 3.16). Baseline: GPTQ of 3.25 bits,
tuned over grids (integers in groups of 64, NormalFloat in groups of 64, scales and offsets in groups of 128), each with and without the
rotation. Control: the same grids, rounded to the nearest. `low`, `gptq_low`: 2.25 bits (K = 12, 2 bits of length; groups of 128). K and
the bits of lengths were chosen on Gaussian numbers, by their squared error, before any run on the bed; nothing of the method was tuned.
One run was made: inconclusive, because at 3.25 bits both are within 0.03 of the float model's perplexity of 6.468 (6.495 against 6.496 of
GPTQ, whose tuning took NormalFloat); at 2.25 bits it is 6.679 against 6.830, and every other decisive comparison holds. Neither the rotation
nor the Beta quantiles made a difference here: the bed's weights have no outliers.
"""

from __future__ import annotations

import copy

from limbeck.beds.language import CHARACTERS as BED
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.papers.decoupleq import EXAMPLES, unquantized
from limbeck.plan import apply
from limbeck.quantization import Quantize, Rotate
from limbeck.tasks.drawn import Drawn

SCALARS = {
    "affine": {"grid": "affine", "weights": 128},
    "integer": {"symmetric": True, "weights": 64},
    "normal_float": {"grid": "normal_float", "weights": 64},
}


def quantized(run: Run, rotated: bool, rounding: str, examples: int = EXAMPLES, **settings) -> dict[str, float]:
    """Quantize the blocks of the bed's model and measure it, its bytes, and the relative squared error of its weights."""
    model = copy.deepcopy(BED.teacher(run))
    if rotated:
        model = apply(model, Rotate(seed=run.seed).plan(model))
    transform = Quantize(activations=None, rounding=rounding, examples=examples, batch_size=16, only="blocks.*",
                         scale_type="bfloat16", **settings)  # fmt: skip
    before = copy.deepcopy(model)
    model = apply(model, transform.plan(model, Drawn(BED.task, run.seed)))
    layers = {path: module for path, module in model.named_modules() if hasattr(module, "weight_codes")}
    pairs = [(module.weight, before.get_submodule(path).weight.detach()) for path, module in layers.items()]
    off = sum(float((found - true).square().sum()) for found, true in pairs)
    error = off / sum(float(true.square().sum()) for _, true in pairs)
    stored = sum(module.packed.nbytes for module in layers.values())
    run.record(examples=examples)
    return {**BED.measure(run, model), "bytes": stored, "weight_error": error}


def pyramid(
    run: Run,
    rotated: bool = True,
    rounding: str = "vector_feedback",
    pulses: int = 26,
    gain_bits: int = 3,
    gains: str = "beta",
    **settings,
) -> dict[str, float]:
    """Vectors of 16 on the pyramid."""
    grid = {"name": "pyramid", "entries": 16, "pulses": pulses, "gain_bits": gain_bits, "gains": gains}
    return quantized(run, rotated, rounding, grid=grid, **settings)


def scalar(
    run: Run, rotated: bool = True, rounding: str = "gptq", grid: str = "affine", bits: int = 3, **settings
) -> dict[str, float]:
    """Single weights, on one of `SCALARS`, with the ranges of least squared error."""
    return quantized(run, rotated, rounding, bits=bits, method="mse", **SCALARS[grid], **settings)


def lattice(run: Run, **settings) -> dict[str, float]:
    """Vectors of 8 on the lattice E8."""
    return quantized(run, True, "vector_feedback", grid="e8", bits=3, **settings)


TUNE = {"grid": tuple(SCALARS), "rotated": (True, False)}

paper = Paper(
    id=262,
    title="Pyramid Vector Quantization for LLMs",
    claim="At 3.25 bits a weight a language model of pyramid vectors, rotated and with error feedback, is nearly as good as in float, and better "
    "than GPTQ, than rounding to the nearest, and than pyramids without feedback; at 2.25 bits it is better than GPTQ too.",
    composition='Rotate() | Quantize(grid={"name": "pyramid", "entries": 16, "pulses": 26, "gain_bits": 3, "gains": "beta"}, '
    'activations=None, rounding="vector_feedback")',
    metric="perplexity",
    better="lower",
    method=Arm(pyramid, about="pyramids with feedback, 3.25 bits"),
    baseline=Arm(scalar, tune=TUNE, about="GPTQ, 3.25 bits"),
    control=Arm(scalar, {"rounding": "nearest"}, tune=TUNE, about="rounded to the nearest, 3.25 bits"),
    others={
        "plain": Arm(pyramid, {"rounding": "nearest"}, about="pyramids without feedback, 3.25 bits"),
        "uniform": Arm(pyramid, {"gains": "uniform"}, about="lengths on uniform levels, 3.25 bits"),
        "unrotated": Arm(pyramid, {"rotated": False}, about="without the rotation, 3.25 bits"),
        "e8": Arm(lattice, about="the lattice E8 with feedback, 3.13 bits"),
        "low": Arm(pyramid, {"pulses": 12, "gain_bits": 2}, about="pyramids with feedback, 2.25 bits"),
        "gptq_low": Arm(
            scalar, {"bits": 2, "grid": "affine"}, tune={"rotated": (True, False)}, about="GPTQ, 2.25 bits"
        ),
        "float": Arm(unquantized, about="32 bits"),
    },
    comparisons=(
        Comparison(),
        Comparison(against="control"),
        Comparison(against="plain", text="what the feedback adds"),
        Comparison("loss", against="float", margin=0.035, text="within 2 % of the float model's loss, 0.035 nats"),
        Comparison(method="low", against="gptq_low", text="2.25 bits, against GPTQ"),
        Comparison("weight_error", method="plain", against="control", text="squared error of the weights"),
        Comparison(against="uniform", decisive=False, text="Beta quantiles against uniform lengths"),
        Comparison(against="unrotated", decisive=False, text="what the rotation adds"),
        Comparison("bytes", decisive=False, text="bytes of the weights against GPTQ's"),
    ),
    miniature=Miniature(
        beds=(BED,),
        seeds=5,
        equal=("examples",),
        why_unequal="nothing is trained; arms see the same calibration examples, and their `bytes` are reported",
    ),
    left_out="Llama, Mistral and Phi models; activations on pyramids; rotations at run time; kernels.",
)
