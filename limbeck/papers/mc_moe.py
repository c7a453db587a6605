"""MC-MoE: bits for each expert by what it would lose and how much it is used, and fewer experts for the tokens that need one.

    stored     min sum_i,b f_i w_i^1.5 e_ib^2 x_ib   over widths of 1, 2 and 3 bits, their sum within a budget, at least one expert of 3 and
               one of 2 bits;  f: frequency, w: routing weight, e: change of the mixture's output;  then GPTQ; everything else 4 bits
    at run     the second expert is left out where w_2 < t w_1, t the median of w_2 / w_1, in the mixtures where this costs least, and
               never for the 2 % of the tokens that later ones attend to most, times their norm

Source: Huang et al., "MC-MoE: Mixture Compressor for Mixture-of-Experts LLMs Gains More", ICLR 2025, section 3; the mechanism as the catalogue
has it and the authors' code were read. Where they differ the paper is followed: the code never uses the exponent 2 of e, and its score
sums attention over the wrong axis. Pieces: `ExpertBits`, `allocate(at_least=...)`, `GPTQ` and `FewerExperts`, `expert_thresholds`.

The miniature: a language model of 2 blocks with 8 experts each, 2 per token, on the characters of tinyshakespeare, one of its own for every
seed; 2 bits per expert weight in the mean, groups of 64, router and head in float. Baseline: 2 bits for every expert. Control: the
widths that the program chose, dealt out to the experts of each mixture at random. `frequency`: the same program without routing weights, and
with the mean error of all experts. `fewer`: `method` with experts left out in one of the two mixtures; `unprotected`: without protected tokens and
`random`: tokens drawn at random, both with as many experts left out on the calibration data. Nothing was tuned; no pilot was run.

One run was made: it does not hold. 2 bits everywhere lose almost nothing here (8.392 against 8.368 in float), and at that mean an expert of 3
bits is paid for by one of a single bit, which costs far more: the program has 8.552, widths by frequency 8.489, random ones 8.601. The
programmed loss counts use twice, in f and w and again in e, which is large where many tokens pass. Leaving out 12 % of all expert calls cost
0.002 nats, less than with tokens drawn at random (8.570 against 8.611); protected tokens made no difference (8.568 without).
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from limbeck.beds.experts import Experts
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.inference import FewerExperts, expert_thresholds
from limbeck.plan import apply
from limbeck.quantization import ExpertBits, Quantize
from limbeck.signals import call

BED = replace(Experts(), steps=500)
MEAN, PROTECT = 2.0, 0.02


def compressed(run: Run, allocation: str = "program", bed: Experts = BED) -> nn.Module:
    """The bed's model with experts of 2 bits in the mean. allocation: "program", "frequency", "shuffled" or "uniform"."""
    model = copy.deepcopy(bed.teacher(run, seed=run.seed))
    settings = {"weights": min(64, bed.width), "activations": None, "rounding": "gptq", "ignore": ("*.router", "head")}
    quantize = Quantize(examples=64, batch_size=32, **settings)
    experts = ExpertBits(average_bits=MEAN, quantize=quantize, examples=64)
    if allocation == "frequency":
        experts = replace(experts, routing=0.0, own_errors=False)
    choice = experts.choose(model, bed.task)
    draws = run.generator("bits")
    for owner, widths in choice.items():
        if allocation == "uniform":
            choice[owner] = dict.fromkeys(widths, int(MEAN))
        elif allocation == "shuffled":
            order = torch.randperm(len(widths), generator=draws).tolist()
            choice[owner] = {index: widths[other] for index, other in enumerate(order)}
    plan = experts.plan_of(model, bed.task, choice)
    inside = {p: e["weight"]["bits"] for p, e in plan.decisions["modules"].items() if ".experts." in p}
    numbers = {path: model.get_submodule(path).weight.numel() for path in inside}
    run.record(expert_bits=sum(numbers[path] * bits for path, bits in inside.items()) / sum(numbers.values()))
    return apply(model, plan).eval()


def stored(run: Run, allocation: str = "program", bed: Experts = BED) -> dict[str, float]:
    """Fewer bits, all experts."""
    return bed.evaluate(compressed(run, allocation, bed), run.split)


def fewer(run: Run, how: str = "protected", bed: Experts = BED) -> dict[str, float]:
    """Fewer bits and fewer experts. how: "protected", "unprotected" or "random"; `saved` is the share of expert calls left out."""
    model = compressed(run, bed=bed)
    thresholds = expert_thresholds(model, bed.task, layers=1)
    ((path, _),) = thresholds.items()
    arguments = {"thresholds": thresholds, "protect": PROTECT}
    if how != "protected":
        share = left_out(model, bed, FewerExperts(model, thresholds, PROTECT), path)
        if how == "random":
            arguments = {"thresholds": {path: share}, "protect": 0.0, "random": run.seed}
        else:
            arguments = {"thresholds": expert_thresholds(model, bed.task, share={path: share}), "protect": 0.0}
    with FewerExperts(model, **arguments) as running:
        found = bed.evaluate(model, run.split)
    return found | {"saved": running.saved}


def left_out(model: nn.Module, bed: Experts, running: FewerExperts, path: str) -> float:
    """The share of the tokens of one mixture that are left with one expert, on calibration data."""
    with torch.no_grad(), running:
        for batch in bed.task.batches("train", 32, limit=64):
            call(model, batch)
    choices = sum(mixture.top for mixture in running.mixtures.values())
    return running.left_out * choices / running.calls


def unquantized(run: Run, bed: Experts = BED) -> dict[str, float]:
    return bed.evaluate(bed.teacher(run, seed=run.seed), run.split)


paper = Paper(
    id=234,
    title="MC-MoE: Mixture Compressor for Mixture-of-Experts LLMs Gains More",
    claim="With 2 bits per expert weight in the mean, widths by frequency, routing weight and output error are better than 2 bits everywhere, than "
    "widths dealt out at random, and than widths by frequency; leaving out second experts costs less where important tokens are protected.",
    composition='ExpertBits(bits=(1, 2, 3), average_bits=2.0, quantize=Quantize(weights=64, rounding="gptq")); '
    "FewerExperts(model, expert_thresholds(model, task, layers=1), protect=0.02)",
    metric="perplexity",
    better="lower",
    method=Arm(stored, about="widths by the program"),
    baseline=Arm(stored, {"allocation": "uniform"}, about="2 bits everywhere"),
    control=Arm(stored, {"allocation": "shuffled"}, about="the same widths dealt out at random"),
    others={
        "frequency": Arm(stored, {"allocation": "frequency"}, about="widths by frequency"),
        "fewer": Arm(fewer, about="second experts left out, important tokens protected"),
        "unprotected": Arm(fewer, {"how": "unprotected"}, about="as many left out, no token protected"),
        "random": Arm(fewer, {"how": "random"}, about="as many left out, of tokens drawn at random"),
        "float": Arm(unquantized, about="not quantized, all experts"),
    },
    comparisons=(
        Comparison(text="against 2 bits everywhere"),
        Comparison(against="control", text="against random widths"),
        Comparison(against="frequency", text="against widths by frequency"),
        Comparison(method="fewer", against="unprotected", text="protected tokens, against none"),
        Comparison(method="fewer", against="random", text="by routing weight, against at random"),
        Comparison(
            "loss",
            method="fewer",
            against="method",
            margin=0.02,
            decisive=False,
            text="fewer experts cost at most 0.02 nats",
        ),
    ),
    miniature=Miniature(
        beds=(BED,),
        seeds=5,
        equal=(),
        why_unequal="nothing is trained by an arm; each records `expert_bits`, at most 2, and those that leave out experts report `saved`",
    ),
    left_out="Mixtral, eight tasks, other means of bits; keeping what is not used in slower memory; dropping a token's experts altogether.",
)
