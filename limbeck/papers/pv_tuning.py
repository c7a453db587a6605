"""PV-Tuning: a model of 1 or 2 bits is tuned as it is, its codes too, a few at a time.

Idea: fine-tuning after extreme quantization either leaves the codes alone or moves them by straight-through estimation, whose steps are not
those of the quantized model. PV-Tuning takes turns: with codes fixed, codebooks and all other parameters follow their exact gradients (P);
with codebooks fixed, a large optimizer step is taken on the dequantized weights and only the part tau of the code groups that it moves most is
encoded anew (V), because the linearization of the loss holds for a small change of the whole only.

    min KL(original || quantized) over tokens;    V: L <- L - rate g / sqrt(v),  the groups of largest ||L - W|| get their nearest codes

Source: Malinovskii et al., "PV-Tuning: Beyond Straight-Through Estimation for Extreme LLM Compression", NeurIPS 2024; the authors' public code was
read. As in its released recipe both steps are made in every training step and the latent weight L is kept; `pure` sets it back after every step.
Pieces: `TuneCodes`, `tune_codes`, `CodebookGrid` of `limbeck.quantization`, `SoftTargets`. Deviations: k-means codebooks of 16 vectors of 4 weights per matrix
(1 bit a weight) in place of AQLM's additive ones, so the nearest code is exact and no beam is searched; a character model of two layers of width 96
on tinyshakespeare; AdamW's usual betas for what is not codes; tau tuned, because a hundred steps at 1 % reach each group once.

Same start, same steps and samples for all. Baseline: straight-through training of all codes (tau = 1), with codebooks by exact gradients, its rate tuned.
Control: codebooks and other parameters alone. `start`: the k-means codes without tuning. No pilot was run: the settings to choose from were written down before.
"""

from __future__ import annotations

import copy

from limbeck.beds.language import CHARACTERS as BED
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.objectives import SoftTargets
from limbeck.plan import apply
from limbeck.quantization import Quantize, TuneCodes, finish_codes, tune_codes

ORIGINAL = {"depth": 2, "width": 96, "heads": 4, "steps": 500}
CODES = Quantize(bits=4, grid={"name": "kmeans", "entries": 4}, weights="tensor", activations=None, only="blocks.*")
STEPS = 100


def measured(run: Run, model) -> dict[str, float]:
    """Perplexity of the stored form, and the bytes of its coded layers."""
    stored = sum(module.nbytes for module in model.modules() if hasattr(module, "weight_codes"))
    run.record(bytes=stored)
    return {**BED.measure(run, model), "bytes": stored}


def tuned(
    run: Run,
    share: float = 0.03,
    rate: float = 1e-2,
    learning_rate: float = 1e-3,
    keep: bool = True,
    steps: int = STEPS,
) -> dict[str, float]:
    """Tune from the common start with the part `share` of the code groups free to change in a step."""
    original = BED.teacher(run, **ORIGINAL)
    student = copy.deepcopy(original)
    student = tune_codes(student, CODES.plan(student))
    procedure = TuneCodes(student, original, SoftTargets(temperature=1.0), rate, share, keep)
    BED.fit(
        run,
        student,
        procedure=procedure,
        steps=steps,
        learning_rate=learning_rate,
        batch_size=8,
        precision="fp32",
        weight_decay=0.0,
    )
    return measured(run, apply(*finish_codes(student)))


def untuned(run: Run) -> dict[str, float]:
    """The k-means codes as they are."""
    student = copy.deepcopy(BED.teacher(run, **ORIGINAL))
    return measured(run, apply(student, CODES.plan(student)))


paper = Paper(
    id=253,
    title="PV-Tuning: Beyond Straight-Through Estimation for Extreme LLM Compression",
    claim="From the same start and with as many steps, tuning codes and codebooks with few code changes per step gives a better 1-bit model than "
    "straight-through training of all codes and than tuning codebooks alone.",
    composition='TuneCodes(tune_codes(student, Quantize(grid="kmeans").plan(student)), original, SoftTargets(temperature=1), share=0.03)',
    metric="perplexity",
    better="lower",
    method=Arm(
        tuned, tune={"share": (0.01, 0.05), "rate": (3e-3, 1e-2)}, about="PV-Tuning with a latent weight, 1 bit"
    ),
    baseline=Arm(tuned, {"share": 1.0}, tune={"rate": (1e-4, 3e-4, 1e-3, 3e-3)}, about="straight-through, 1 bit"),
    control=Arm(
        tuned, {"share": 0.0}, tune={"learning_rate": (1e-3, 3e-3)}, about="codebooks and other parameters alone, 1 bit"
    ),
    others={
        "pure": Arm(
            tuned,
            {"keep": False},
            tune={"rate": (1e-2, 1e-1)},
            about="PV-Tuning without a latent weight",
        ),
        "start": Arm(untuned, about="k-means codes, not tuned, 1 bit"),
    },
    comparisons=(
        Comparison(),
        Comparison(against="control"),
        Comparison(method="pure", against="control", decisive=False, text="pure PV against codebooks alone"),
        Comparison(against="pure", decisive=False, text="what the latent weight adds"),
    ),
    miniature=Miniature(
        beds=(BED,), seeds=3, equal=("bytes",), why_unequal="the untuned start takes no steps; all others take the same"
    ),
    left_out="Llama and Mistral; additive codebooks and their beam search; stochastic rounding; the bound on a layer's relative change.",
)
