"""QuantMoE-Bench: which parts of a mixture of experts need the bits.

    structure     layers that every token uses (attention) before those of single experts, experts used often before the others
    outliers      s(W) = max over inputs j of  max_i |W_ij| / mean_i |W_ij|,   the highest first
    importance    a small network predicts cos(x, x + f(x)) of every token x that enters a block's feed-forward branch f; blocks of
                  low mean first

each with `high` bits for what comes first and `low` for the rest, at the same mean; GPTQ in groups.

Source: Li et al., "QuantMoE-Bench: Examining Post-Training Quantization for Mixture-of-Experts", 2024, sections 3 and 4. The authors'
code was read: the outlier score agrees, and so do the predictor (two layers without biases, 1024 wide, tanh) and its pairs with the
residual, x and x + f(x), the default where it trains; where it evaluates, its default is a predictor of f's own input and answer.
Deviation: the predictor sees 200 steps of ten times their rate, theirs up to 100 epochs.

The miniature: a language model of 2 blocks with 8 experts each, 2 per token, on the characters of tinyshakespeare, one of its own
for every seed; 2 and 4 bits, 3 in the mean, groups of 64, router and head in float. Baseline: 3 bits everywhere. Control: 2 and 4 bits handed
out at random. `outliers`, `importance`, `first` (early blocks first); `float`. Nothing was tuned.
"""

from __future__ import annotations

import copy
from dataclasses import replace

from limbeck.beds.experts import Experts
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.plan import apply
from limbeck.quantization import Quantize, ScoredBits

BED = replace(Experts(), steps=500)
LOW, HIGH, MEAN = 2, 4, 3.0


def quantized(
    run: Run,
    scores: tuple[str, ...] = ("shared", "usage"),
    mean: float = MEAN,
    rounding: str = "gptq",
    bed: Experts = BED,
) -> dict[str, float]:
    """scores: of `ScoredBits`; ("uniform",) for the mean everywhere, ("none",) for float. Perplexity on the run's split."""
    model = copy.deepcopy(bed.teacher(run, seed=run.seed))
    settings = {"weights": min(64, bed.width), "activations": None, "rounding": rounding, "ignore": ("*.router",)}
    quantize = Quantize(bits=int(mean), examples=64, batch_size=32, **settings)
    if tuple(scores) == ("none",):
        return bed.evaluate(model, run.split) | {"bits": 32.0}
    if tuple(scores) == ("uniform",):
        plan = quantize.plan(model, bed.task)
    else:
        scored = ScoredBits(tuple(scores), LOW, HIGH, mean, quantize, examples=64, seed=run.seed)
        plan = scored.plan(model, bed.task)
    widths = {path: entry["weight"]["bits"] for path, entry in plan.decisions["modules"].items()}
    numbers = {path: model.get_submodule(path).weight.numel() for path in widths}
    used = sum(numbers[path] * width for path, width in widths.items())
    run.record(bytes=used / 8)
    apply(model, plan)
    return bed.evaluate(model, run.split) | {"bits": used / sum(numbers.values())}


paper = Paper(
    id=43,
    title="QuantMoE-Bench: Examining Post-Training Quantization for Mixture-of-Experts",
    claim="At the same mean of bits a mixture of experts is better with more of them for the layers that every token uses and for the experts "
    "used most than with the same everywhere, and than with bits handed out at random; the outlier score finds such layers from the weights.",
    composition='ScoredBits(("shared", "usage"), 2, 4, 3.0, Quantize(weights=64, rounding="gptq"))',
    metric="perplexity",
    better="lower",
    method=Arm(quantized, about="shared layers, then experts by use"),
    baseline=Arm(quantized, {"scores": ("uniform",)}, about="3 bits everywhere"),
    control=Arm(quantized, {"scores": ("random",)}, about="random layers at 4 bits"),
    others={
        "outliers": Arm(quantized, {"scores": ("outliers",)}, about="layers by outlier score"),
        "importance": Arm(quantized, {"scores": ("predicted",)}, about="blocks by predicted importance"),
        "first": Arm(quantized, {"scores": ("first",)}, about="early blocks first"),
        "float": Arm(quantized, {"scores": ("none",)}, about="not quantized"),
    },
    comparisons=(
        Comparison(text="against 3 bits everywhere"),
        Comparison(against="control", text="against random layers"),
        Comparison(method="outliers", against="control", decisive=False, text="outlier score against random"),
        Comparison(method="importance", against="control", decisive=False, text="predicted importance against random"),
        Comparison(method="first", against="control", decisive=False, text="early blocks against random"),
    ),
    miniature=Miniature(
        beds=(BED,),
        seeds=3,
        equal=(),
        why_unequal="nothing is trained by an arm; each reports its mean of `bits`, at most 3",
    ),
    left_out="Mixtral and DeepSeek-MoE, six language tasks, shared experts (the bed has none), other means of bits.",
)
