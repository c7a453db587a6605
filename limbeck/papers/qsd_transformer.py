"""QSD-Transformer: a spiking vision transformer with 4-bit weights, neurons that fire whole numbers of spikes, and a teacher that does not spike.

Idea: with weights of few bits the queries, keys and values of spike-driven attention crowd at few rates and tell images less apart. Neurons that are
trained on the number of spikes in T steps, and not on single ones, spread them; and a float twin that does not spike shows how they relate:

    s = floor(clip(T u, 0, T) + 1/2) / T,   attention = Q (K^T V) / 4,   L = CE + sum over layers and X in Q, K, V, QK  | P_s / |P_s| - P_t / |P_t| |
    P_X = X X^T per head,  P_QK = Q K^T                   w^ = step round(clip(w / step)), steps learned (LSQ)

Source: Qiu et al., "Quantized Spike-driven Transformer", ICLR 2025; its mechanism as the catalogue has it and the authors' public code (neuron,
attention, weight quantizer) were read. The code has no distillation, so the form of that term is BiBERT's direction matching: unsure.
Pieces: `limbeck.models.spiking_vit`, `Quantize(bits=4)` and `prepare_qat(learned=True)` of `limbeck.quantization`, `TokenRelations(loss="direction")`.

The miniature: MNIST of 12x12 in 16 patches, T = 4, 3 blocks of width 32, from untrained weights; 4-bit weights with a learned step per channel inside
the blocks. The teacher is the same network in float with neurons clip(u, 0, 1). Baseline: LIF neurons (leak 1/2, threshold 1, T passes),
no distillation. Control: the new neurons without distillation. `spike_bits`: entropy of the rates
of queries, keys and values; `spikes`: mean number per neuron and image, for energy. Same steps, order, schedule and parameters.
Deviations: linear layers with batch normalization in place of convolutions; patches and head stay float; weights -7 ... 7 with steps from the
largest weight (the code: -8 ... 7, steps from the mean).
Two runs were made. In the first, networks began with positions of deviation 0.02 beside tokens of deviation 1, so that the order of patches was
hardly seen: 0.364, against 0.325 for LIF neurons and 0.337 without distillation. The second, which counts, begins with unit variance, as the bed's other
networks do (one look at each arm on validation before): inconclusive. The neurons add 6.3 points (0.454 against 0.391, surely), the distillation
nothing (0.450, interval -2.6 to 1.7 points). The rates of queries, keys and values have 1.80 bits against 1.40, and there are more spikes, 1.49
against 0.79 per neuron and image. 300 steps from untrained weights leave all of them far below the 0.96 of a float transformer.
"""

from __future__ import annotations

import torch

from limbeck.beds.patches import UNIT_PATCHES, PatchBed
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.models import spiking_vit
from limbeck.models.initialize import unit_variance
from limbeck.models.spiking import SpikingViT
from limbeck.objectives import CrossEntropy, Objective, TokenRelations
from limbeck.plan import apply
from limbeck.quantization import Quantize, finish_qat, prepare_qat
from limbeck.signals import capture
from limbeck.training import Distil

DEPTH, WIDTH, STEPS = 3, 32, 4


def network(bed: PatchBed, neuron: str) -> SpikingViT:
    """An untrained network for the bed's images."""
    sizes = {"depth": DEPTH, "width": WIDTH, "heads": bed.heads, "hidden": 2 * WIDTH}
    return unit_variance(
        spiking_vit(bed.size, bed.patch, len(bed.task().classes), 1, neuron=neuron, steps=STEPS, **sizes)
    )


def teacher(run: Run, bed: PatchBed, steps: int) -> SpikingViT:
    """The twin that does not spike, in float, trained once."""
    config = bed.config(steps)
    key = {"kind": "twin of spiking_vit", "bed": bed.digest(), "training": config.to_json(), "version": 2}
    key |= {"architecture": [DEPTH, WIDTH, STEPS]}

    def train(model: SpikingViT) -> None:
        run.train(Distil(model, None, CrossEntropy()), bed.task(), config, seed=0, counted=False)

    return run.trained(key, lambda: network(bed, "clip"), train)


def objective(heads: int, weight: float) -> Objective:
    """Labels and, with a weight, how queries, keys and values relate in every layer."""
    found: Objective = CrossEntropy()
    for i in range(DEPTH) if weight else ():
        signal = {name: f"blocks.{i}.attention.{name}_spike" for name in ("query", "key", "value")}
        for pair in (*((path, path) for path in signal.values()), (signal["query"], signal["key"])):
            found = found + weight * TokenRelations(pair, pair, heads=heads, loss="direction")
    return found


def spike_counts(model: SpikingViT, batch) -> tuple[float, float]:
    """Mean entropy in bits of the spike counts of queries, keys and values per layer; mean spikes per neuron and image of all layers."""
    neurons = {path: m for path, m in model.named_modules() if path.rpartition(".")[2].endswith("spike")}
    with torch.no_grad():
        signals = capture(model, batch, neurons)
    bits, counts = [], []
    for path, fired in signals.items():
        rate = fired.unflatten(0, (model.steps, -1)).mean(0) / neurons[path].gain
        count = torch.round(rate * STEPS)
        counts.append(float(count.mean()))
        if path.endswith(("query_spike", "key_spike", "value_spike")):
            share = torch.bincount(count.flatten().long(), minlength=STEPS + 1) / count.numel()
            bits.append(float(-torch.xlogy(share, share).sum() / torch.tensor(2.0).log()))
    return sum(bits) / len(bits), sum(counts) / len(counts)


def spiked(
    run: Run, rate: float, neuron: str = "information", weight: float = 0.0, steps: int = 300, teaching: int = 600,
    bed: PatchBed = UNIT_PATCHES,
) -> dict[str, float]:  # fmt: skip
    """Train a spiking network and measure it. weight: of the distillation; 0 for none."""
    model = run.fresh(lambda: network(bed, neuron))
    transform = Quantize(bits=4, activations=None, symmetric=True, only="blocks.*")
    prepare_qat(model, transform.plan(model), learned=True)
    twin = teacher(run, bed, teaching)
    loss = objective(bed.heads, weight)
    run.train(Distil(model, twin if weight else None, loss), bed.task(), bed.config(steps, learning_rate=rate))
    run.record(parameters=sum(parameter.numel() for parameter in model.parameters()))
    model = apply(*finish_qat(model)).eval()
    bits, spikes = spike_counts(model, next(iter(bed.task().batches(run.split, 200))))
    found = bed.task().evaluate(lambda batch: model(batch["pixel_values"]), split=run.split)
    return {**found, "spike_bits": bits, "spikes": spikes}


RATES = (2e-3, 6e-3)

paper = Paper(
    id=284,
    title="Quantized Spike-driven Transformer",
    claim="With 4-bit weights, information-enhanced neurons and the distillation of how queries, keys and values relate are better than plain spiking "
    "neurons, and each of the two adds to it.",
    composition='Distil(prepare_qat(spiking_vit(neuron="information"), Quantize(bits=4).plan(...), learned=True), twin, CrossEntropy() + '
    'sum over layers TokenRelations(Q, K, V, QK, loss="direction"))',
    metric="accuracy",
    method=Arm(
        spiked, tune={"rate": RATES, "weight": (0.1, 0.5)}, about="information-enhanced neurons, distilled, 4 bits"
    ),
    baseline=Arm(spiked, {"neuron": "lif"}, {"rate": (1e-3, 2e-3, 6e-3, 1e-2)}, "LIF neurons, 4 bits"),
    control=Arm(spiked, tune={"rate": RATES}, about="information-enhanced neurons, 4 bits"),
    comparisons=(
        Comparison(text="both against plain LIF neurons"),
        Comparison(against="control", text="what the distillation adds"),
        Comparison(method="control", against="baseline", text="what the neurons add"),
        Comparison("spike_bits", decisive=False, text="the rates of queries, keys and values have more entropy"),
        Comparison("spikes", better="lower", decisive=False, text="with fewer spikes than LIF neurons"),
    ),
    miniature=Miniature(beds=(UNIT_PATCHES,), seeds=5, equal=("steps", "samples", "parameters")),
    left_out="ImageNet, COCO, ADE20K; convolutional stages; energy on hardware (spikes are counted); event data.",
)
