"""Discrete key-value bottleneck: on a frozen encoder, learn only the values of the few keys that an input fetches.

    z = encoder(x);  k_h = argmin_k |P_h z - key_hk|;  logits = 1/H sum_h value_{h, k_h};  L = CE(logits)

Keys are placed beforehand by vector quantization of unlabelled inputs and never move; P is random and fixed. A step changes the
fetched values only, so what other inputs fetch stays as it was: less is forgotten, without task boundaries and without a memory.

Source: Traeuble et al., "Discrete Key-Value Bottleneck", ICML 2023, sections 2 and 5; no code of the authors was found.
Public code is not the authors' and was not run beside this.
Arms: the same features and steps for a linear probe (baseline) and a hidden layer (control), trained on the classes one
phase after another; `together` trains the bottleneck on all classes at once, which it should come near to.
Deviations: features of a CNN trained on CIFAR-100 at 16x16, averaged over places; CIFAR-10 in 5 phases; 32 heads of 128 keys
(paper: 256 of 4096). Keys are placed with images that the encoder knew before, so nothing of a later phase is seen early.
The rates to choose from were narrowed by hand on the validation split (seed 1000); the chosen ones lie at the ends of the ranges.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from limbeck.beds.incremental import Incremental, Learned, Phase
from limbeck.experiments.paper import Arm, Comparison, Miniature, Paper
from limbeck.experiments.run import Run
from limbeck.models import key_value_bottleneck
from limbeck.objectives import CrossEntropy
from limbeck.training import Supervised
from limbeck.training.randomness import restored_generators

bed = Incremental(train=500, epochs=10)


def keyed(
    run: Run, features: Tensor, bed: Incremental, heads: int = 32, head_width: int = 8, keys: int = 128
) -> nn.Module:
    """A bottleneck whose keys lie where the encoder's own training images are; four passes in batches of 500."""
    model = key_value_bottleneck(features.shape[-1], 10, heads, head_width, keys)
    order = [torch.randperm(len(features)) for _ in range(4)]
    return model.place_keys(features[part] for at in order for part in at.split(500))


def linear(run: Run, features: Tensor, bed: Incremental) -> nn.Module:
    return nn.Linear(features.shape[-1], 10)


def hidden(run: Run, features: Tensor, bed: Incremental) -> nn.Module:
    return nn.Sequential(nn.Linear(features.shape[-1], 256), nn.ReLU(), nn.Linear(256, 10))


def learn(
    run: Run,
    make: Callable[[Run, Tensor, Incremental], nn.Module],
    learning_rate: float,
    together: bool = False,
    bed: Incremental = bed,
) -> dict[str, float]:
    """Train one head through all phases (or on everything at once, for as many steps) by plain SGD and measure it."""
    source, before = bed.features(run), bed.unlabelled(run)
    deviation, mean = before.std(0), before.mean(0)
    source = {split: ((inputs - mean) / deviation, labels) for split, (inputs, labels) in source.items()}
    with restored_generators():
        torch.manual_seed(run.seed)
        model = make(run, (before - mean) / deviation, bed)
    settings = {"learning_rate": learning_rate, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    settings |= {"augment": False, "schedule": "constant", "precision": "fp32", "channels_last": False}
    run.record(parameters=sum(parameter.numel() for parameter in model.parameters()))

    def phase(now: Phase) -> Learned:
        task = now.task
        if together:
            task = bed.task(run.seed, 0, 10, source=source)
        if not together or now.number == 0:
            config = bed.config(now.number, **settings, **({"epochs": bed.epochs} if not together else {}))
            run.train(Supervised(model, CrossEntropy()), task, config, seed=run.seed * 100 + now.number)
        return Learned(lambda batch: model(batch["pixel_values"])[:, : now.seen])

    return bed.protocol(run, phase, source, remember=False)


def bottleneck(run: Run, learning_rate: float) -> dict[str, float]:
    return learn(run, keyed, learning_rate)


def linear_probe(run: Run, learning_rate: float) -> dict[str, float]:
    return learn(run, linear, learning_rate)


def hidden_layer(run: Run, learning_rate: float) -> dict[str, float]:
    return learn(run, hidden, learning_rate)


def bottleneck_together(run: Run, learning_rate: float) -> dict[str, float]:
    return learn(run, keyed, learning_rate, together=True)


RATES = {"learning_rate": (1.0, 3.0, 10.0)}
PROBE_RATES = {"learning_rate": (0.0003, 0.001, 0.003)}
paper = Paper(
    id=52,
    title="Discrete Key-Value Bottleneck",
    claim="Class-incremental learning through a discrete key-value bottleneck forgets less than linear and hidden-layer probes.",
    composition="frozen encoder + key_value_bottleneck (VectorQuantizer keys by moving averages) + CrossEntropy, no memory",
    metric="final_accuracy",
    method=Arm(bottleneck, tune=RATES, about="fetched values only"),
    baseline=Arm(linear_probe, tune=PROBE_RATES, about="linear probe"),
    control=Arm(hidden_layer, tune=PROBE_RATES, about="one hidden layer of 256"),
    others={"together": Arm(bottleneck_together, tune=RATES, about="the bottleneck on all classes at once")},
    miniature=Miniature(beds=(bed,), seeds=5),
    comparisons=(
        Comparison(text="better than a linear probe"),
        Comparison(against="control", text="better than a hidden layer"),
        Comparison(against="together", margin=0.05, decisive=False, text="within 5 points of all classes at once"),
    ),
    left_out="Large pretrained encoders (DINO, CLIP, ConvMixer), patch-wise features, learned decoders, the theory.",
)
