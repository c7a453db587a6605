"""JLCM: codebooks for groups of similar neurons, which no table addresses, learned jointly with the codeword of each weight.

    w^ = c_g[I],   g the group of the weight's neuron;   c and I learned on each layer's output error, the step from a codeword to another weighed by a
    decreasing function of their distance

Idea: one codebook for a whole tensor is coarse, a codebook per neuron must be stored or addressed. Neurons sorted by their size can share one with their
neighbours; the next layer absorbs the order. Plain gradients of the mapping grow with the distance of codewords, so that weights jump to the outermost
ones; the proximal gradient searches nearby.

Source: Yvinec et al., "Network Memory Footprint Compression Through Jointly Learnable Codebooks and Mappings", ICLR 2024; its abstract and public reviews
were read, no text or code was at hand. Pieces: `OrderNeurons`, `PerRows`, `JointCodebooks`, `CodebookGrid` of `limbeck.quantization`. Ours, for want of the
text: neurons sorted by root mean square and cut in equal runs; the mapping as a softmax whose temperature falls; the decreasing function.

The miniature: a character model of four layers of width 128 on tinyshakespeare, all linear layers inside the blocks at 2 bits, 128 sequences of 128
characters to calibrate with, which are what a seed varies. Method: neurons of feed-forward layers and heads in order, a codebook of four for every 32 rows,
learned. Baseline: k-means, one codebook per tensor. Control: the same with plain gradients. `grouped`: k-means for ordered groups. `unordered`: groups
of neurons as they come, learned. `tensor`: one codebook per tensor, learned. Codebooks are 1 % of the bytes; rates of
mapping are tuned alike, of the baseline the steps of k-means.
One run was made for the verdict: inconclusive. Learning brings most (perplexity 8.70 to 6.79; one k-means codebook per tensor 9.11, float 6.47), groups
and the order of neurons 0.1 each, but proximal and plain gradients do not differ (6.790 and 6.773, interval of the difference -0.043 to 0.009).
"""

from __future__ import annotations

import copy

from limbeck.beds.language import CHARACTERS as BED
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.plan import apply
from limbeck.quantization import JointCodebooks, OrderNeurons, Quantize
from limbeck.tasks.drawn import Drawn

EXAMPLES, STEPS, ROWS = 128, 100, "32 rows"


def quantized(
    run: Run, weights: str = ROWS, ordered: bool = True, rounding="nearest", lloyd: int = 20, examples: int = EXAMPLES
) -> dict[str, float]:
    """Quantize the blocks of the bed's model and measure it."""
    model, task = copy.deepcopy(BED.teacher(run)), Drawn(BED.task, run.seed)
    if ordered:
        model = apply(model, OrderNeurons().plan(model, BED.task))
    grid = {"name": "kmeans", "iterations": lloyd}
    transform = Quantize(bits=2, weights=weights, grid=grid, activations=None, rounding=rounding,
                         examples=examples, batch_size=16, only="blocks.*")  # fmt: skip
    model = apply(model, transform.plan(model, task))
    stored = sum(module.nbytes for module in model.modules() if hasattr(module, "weight_codes"))
    run.record(bytes=stored, examples=examples)
    return {**BED.measure(run, model), "bytes": stored}


def learned(
    run: Run, mapping_rate: float = 0.03, proximal: bool = True, steps: int = STEPS, **settings
) -> dict[str, float]:
    """Codebooks and mappings learned jointly."""
    return quantized(
        run, rounding=JointCodebooks(iterations=steps, mapping_rate=mapping_rate, proximal=proximal), **settings
    )


TENSOR = {"weights": "tensor", "ordered": False}
RATES = {"mapping_rate": (0.01, 0.03)}

paper = Paper(
    id=281,
    title="Network Memory Footprint Compression Through Jointly Learnable Codebooks and Mappings",
    claim="At 2 bits, codebooks of groups of similar neurons learned jointly with their mappings lose less than one k-means codebook per tensor, and "
    "proximal gradients of the mapping lose less than plain ones.",
    composition='OrderNeurons(); Quantize(bits=2, weights="32 rows", grid="kmeans", activations=None, rounding=JointCodebooks())',
    metric="perplexity",
    better="lower",
    method=Arm(learned, tune=RATES, about="ordered groups, learned with proximal gradients, 2 bits"),
    baseline=Arm(quantized, TENSOR, tune={"lloyd": (20, 100)}, about="one k-means codebook per tensor, 2 bits"),
    control=Arm(learned, {"proximal": False}, tune=RATES, about="ordered groups, learned with plain gradients, 2 bits"),
    others={
        "grouped": Arm(quantized, about="ordered groups, k-means, 2 bits"),
        "unordered": Arm(learned, {"ordered": False}, about="groups as they come, learned, 2 bits"),
        "tensor": Arm(learned, TENSOR, about="one codebook per tensor, learned, 2 bits"),
    },
    comparisons=(
        Comparison(),
        Comparison(against="control", text="proximal gradients against plain ones"),
        Comparison(against="grouped", decisive=False, text="what learning brings"),
        Comparison(against="tensor", decisive=False, text="what groups bring"),
        Comparison(against="unordered", decisive=False, text="what the order of neurons brings"),
    ),
    miniature=Miniature(
        beds=(BED,),
        seeds=5,
        equal=("examples",),
        why_unequal="nothing is trained on the task: arms see the same calibration examples; codebooks of groups add 1 % of the bytes",
    ),
    left_out="Vision models and Llama; groups found by clustering; scales per group in the place of codebooks.",
)
