"""ModularStarEncoder: one encoder trained at several exits at once, so that its first layers are good encoders too.

    L = sum_m (l_m / l_last) CLIP(exit after layer l_m)

Idea: the upper exits' gradients flow through the lower layers, and the lower exits make those layers useful by themselves. One run
gives a family of encoders to cut where the budget asks.

Source: Gurioli et al., "One Model to Train them All: Hierarchical Self-Distillation for Enhanced Early Layer Embeddings", 2025; no
training code is public. The fine-tuning stage: own projection heads, a contrastive loss with scale 10 at every exit.
Pieces: `exit_encoder` of `limbeck.models`, `PairedContrast` of `limbeck.objectives`.
Deviations: six layers of width 48 with exits after 2, 4 and 6, on 4000 functions in Java and C#; no pre-training; words are not
replaced. One setting was tried by hand (seed 1000, validation): exits 0.84 at every layer, the cut model 0.80, two layers alone 0.91,
so in 150 steps a shallow network learns more than a deep one, and that comparison is reported, not part of the claim. Below the last layer the baseline has no trained head, so its token states are averaged, as is usual; the control is a
network of two layers trained for itself.
"""

from __future__ import annotations

from limbeck.beds.pairs import CODE_PAIRS as BED
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.objectives import Objective, PairedContrast, Sum


def at_exits(layers: tuple[int, ...]) -> Objective:
    """Every exit's contrast, weighted by its depth."""
    return Sum(tuple((PairedContrast(f"exits.{m}"), layer / layers[-1]) for m, layer in enumerate(layers)))


def metric(layer: int) -> str:
    return f"recall_at_layer_{layer}"


def multi_exit(run: Run, learning_rate: float = 2e-3, bed=BED, **changes) -> dict[str, float]:
    """All exits at once."""
    model = bed.fit(run, at_exits(bed.layers), learning_rate=learning_rate, **changes)
    return bed.measure(run, model, {metric(layer): f"exits.{m}" for m, layer in enumerate(bed.layers)})


def last_only(run: Run, learning_rate: float = 2e-3, bed=BED, **changes) -> dict[str, float]:
    """The last exit alone; lower layers are cut off there and their states averaged."""
    model = bed.fit(run, PairedContrast("exits.0"), bed.layers[-1:], learning_rate=learning_rate, **changes)
    signals = {metric(layer): f"blocks.{layer - 1}" for layer in bed.layers[:-1]}
    return bed.measure(run, model, signals | {metric(bed.layers[-1]): "exits.0"})


def shallow(run: Run, exit: int = 0, learning_rate: float = 2e-3, bed=BED, **changes) -> dict[str, float]:
    """A network that ends at one of the exits, trained for itself; its recall stands for every layer that is compared."""
    model = bed.fit(run, PairedContrast("exits.0"), bed.layers[exit : exit + 1], learning_rate=learning_rate, **changes)
    return bed.measure(run, model, {metric(layer): "exits.0" for layer in bed.layers[: exit + 1]})


RATES = {"learning_rate": (1e-3, 3e-3)}
LOW, MIDDLE, LAST = map(metric, BED.layers)
paper = Paper(
    id=25,
    title="One Model to Train them All: Hierarchical Self-Distillation for Enhanced Early Layer Embeddings",
    claim="Training all exits at once makes lower layers better encoders than cutting a model trained at its end, at no loss there.",
    composition='Supervised(exit_encoder(layers=(2, 4, 6)), sum of l / 6 * PairedContrast("exits.m"))',
    method=Arm(multi_exit, tune=RATES, about="exits after 2, 4 and 6 layers"),
    baseline=Arm(last_only, tune=RATES, about="the last exit alone, cut below"),
    control=Arm(shallow, tune=RATES, about="two layers trained for themselves"),
    comparisons=(
        Comparison(LOW, text="layer 2 against the cut model"),
        Comparison(MIDDLE, text="layer 4 against the cut model"),
        Comparison(LAST, margin=0.02, text="the last layer as good, up to 2 points"),
        Comparison(
            LOW,
            against="control",
            margin=0.02,
            decisive=False,
            text="layer 2 as good as a net of two layers, up to 2 points",
        ),
    ),
    miniature=Miniature(beds=(BED,), seeds=3),
    metric=LOW,
    left_out="Masked language modelling with in-context classification of repositories, the layer encoding of shared heads, text to code.",
)
