"""RepQuant: quantize with a scale per channel and a logarithm of base sqrt(2), run with a scale per layer, by an exact fold.

    norms' outputs    s_j, z_j of every channel, both ends clipped for the least squared error;  s~, z~ their means,  r1 = s / s~,  r2 = z - z~
                      gamma' = gamma / r1,  beta' = (beta + s r2) / r1,  W' = W diag(r1),  b' = b - W (s r2)
    softmax           q = round(-2 log2(A / delta)),   A^ = delta 2^-ceil(q / 2) (1 + (sqrt(2) - 1) [q odd])
    weights           columns one after another, the rest making up for the error (GPTQ), one scale per output channel

Source: Li, Gu and Xiao, "RepQuant", 2024, and Li et al., "RepQ-ViT", ICCV 2023. Of RepQuant itself no code is public; that of RepQ-ViT
was read: its fold of norm and reader, the parity form of its softmax codes and weights quantized anew after the fold, with a scale per
output channel, agree with ours. It differs in that the mean zero point keeps its fraction (here it is rounded, and kept on the grid, so
that the fold is exact); that zeros come on top of the 2^b softmax codes (here the last code is 0); that each range is the best of three
percentiles (ours: 0.1 % off); and that queries, keys and values are quantized too. The rest of RepQuant follows a summary: clipping
bounds are searched here, not learned by gradient; GPTQ reconstructs weights from inputs that earlier layers' rounded weights give, with
activations and softmax in float, where the paper's are quantized.

The miniature: a ViT of 6 layers on MNIST of 12 x 12 in 16 patches. So small a model has no outlier channels as large ones have;
every seed gives its norms' outputs scales exp(1.0 n), n Gaussian, moved into the next layer's weights, which leaves its answers as
they are. Weights, activations and softmax of 4 bits; patches and head in float; 64 training images. Baseline: one range per layer
(the best of minmax, percentile and mse) and a uniform softmax. Control: RepQuant without the reparameterization. `percentile`: RepQ-ViT's
ranges; `base2`, `uniform`: of the softmax; `nearest`: weights rounded to the nearest; `float`. All with the same weights' bits.
The size of the outliers was set with seed 1000 on validation. The fold undoes the scales exactly, so RepQuant's own arms are one model
with one calibration whatever the seed: seeds vary what one range per layer loses, and nothing in the comparisons between ranges per
channel, softmax bases and roundings, whose intervals are rounding noise.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from limbeck.beds.patches import PATCHES, PatchBed
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.measure.latency import evaluating
from limbeck.plan import apply
from limbeck.quantization import Quantize, QuantizedLinear, QuantizeSoftmax, RepQuant
from limbeck.quantization.equivalence.folds import rescale
from limbeck.quantization.equivalence.layouts import layout

BED = PATCHES
BITS, SPREAD = 4, 1.0
FLOAT = ("patches", "head")
DATA = {"examples": 64, "batch_size": 32}


def with_outliers(run: Run, model: nn.Module, spread: float) -> nn.Module:
    """A copy whose norms give channels of very different size, and which answers as before."""
    model, draws = copy.deepcopy(model), run.generator("outliers")
    for fold in layout(model).folds:
        if fold.kind == "norm":
            rescale(model, fold, (spread * torch.randn(fold.channels, generator=draws)).exp())
    return model


def quantized(
    run: Run,
    ranges: str = "clipping",
    base: str = "sqrt2",
    rounding: str = "gptq",
    bits: int = BITS,
    spread: float = SPREAD,
    bed: PatchBed = BED,
) -> dict[str, float]:
    """ranges: per channel ("clipping", "percentile"), or per layer ("layer minmax", "layer percentile", "layer mse"), or "none"."""
    model, task = with_outliers(run, bed.supervised(run), spread), bed.task()
    if ranges.startswith("layer"):
        apply(model, QuantizeSoftmax(bits, base, **DATA).plan(model, task))
        settings = {"calibration": ranges.split()[1], "rounding": rounding, "ignore": FLOAT, **DATA}
        apply(model, Quantize(bits=bits, activation_bits=bits, **settings).plan(model, task))
    elif ranges != "none":
        whole = RepQuant(bits, bits, bits, ranges=ranges, base=base, rounding=rounding, ignore=FLOAT, **DATA)
        apply(model, whole.plan(model, task))
    run.record(bytes=sum(m.weight_codes.numel() for m in model.modules() if isinstance(m, QuantizedLinear)))
    with evaluating(model):
        return task.evaluate(lambda batch: model(batch["pixel_values"]), split=run.split)


paper = Paper(
    id=265,
    title="RepQuant: Towards Accurate Post-Training Quantization of Large Transformer Models via Scale Reparameterization",
    claim="At 4 bits of weights and activations a scale per channel folded into the norm and a softmax in powers of sqrt(2) are better than one "
    "range per layer and a uniform softmax, and than the same without the fold.",
    composition='RepQuant(4, 4, 4) = Reparameterize("clipping") + QuantizeSoftmax("sqrt2") + Quantize(static, rounding="gptq")',
    metric="accuracy",
    method=Arm(quantized, about="RepQuant, W4A4"),
    baseline=Arm(
        quantized,
        {"base": "uniform"},
        tune={"ranges": ("layer minmax", "layer percentile", "layer mse")},
        about="one range per layer, uniform softmax",
    ),
    control=Arm(quantized, {"ranges": "layer mse"}, about="RepQuant without the fold"),
    others={
        "percentile": Arm(quantized, {"ranges": "percentile"}, about="percentile ranges per channel (RepQ-ViT)"),
        "base2": Arm(quantized, {"base": "2"}, about="softmax in powers of 2"),
        "uniform": Arm(quantized, {"base": "uniform"}, about="uniform softmax"),
        "nearest": Arm(quantized, {"rounding": "nearest"}, about="weights rounded to the nearest"),
        "float": Arm(quantized, {"ranges": "none"}, about="not quantized"),
    },
    comparisons=(
        Comparison(text="against one range per layer"),
        Comparison(against="control", text="what the fold brings"),
        Comparison(against="percentile", decisive=False, text="clipping against percentiles"),
        Comparison(against="base2", decisive=False, text="base sqrt(2) against 2"),
        Comparison(against="uniform", decisive=False, text="base sqrt(2) against uniform"),
        Comparison(against="nearest", decisive=False, text="reconstruction against rounding"),
    ),
    miniature=Miniature(
        beds=(BED,),
        seeds=5,
        equal=(),
        why_unequal="nothing is trained; every quantized arm stores the same bytes of weights",
    ),
    left_out="ImageNet, COCO, language and multimodal transformers; natural outliers; bounds learned by gradient; running time.",
)
