"""ZeroQ: quantize with no data at all: images drawn from batch-norm statistics, and bits given to the layers that need them.

    images        min over x  sum_l |mean_l(x) - mu_l|^2 + |std_l(x) - sigma_l|^2         (statistics of every batch norm, and of the image)
    sensitivity   Omega_i(k) = mean over images of KL( M(x) || M with layer i at k bits (x) )
    bits          min sum_i Omega_i(k_i)   s.t.   sum_i P_i k_i <= budget,  by dynamic programming on the Pareto frontier

Source: Cai et al., CVPR 2020, eq. 3, 4 and 6. The authors' public code has the images (statistics per image, averaged) and uniform
8 bits; sensitivities and frontier are the paper's only. Here statistics are those of the whole batch, as in the paper; the learning rate
falls by a cosine in place of plateaus; weights are symmetric per channel, because integer kernels take those.

The miniature: a ResNet-8 trained on 4000 CIFAR-10 images of 16 x 16, one of its own for every seed, batch norms folded; weights of
2, 3, 4 or 8 bits, 4 on average (the paper has 2, 4 and 8, with which 4 everywhere is the optimum of so small a network), static
inputs of 6 bits by smallest and largest value. Baseline: 4 bits everywhere, ranges from the same drawn images. Control: random bits of
the same mean. `noise`: sensitivities and ranges from Gaussian images; `real`: from 64 training images; `float`: not quantized. Widths,
their mean, bits of inputs and drawing steps were set beforehand with seed 1000 on validation.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from limbeck.beds.drawn import as_task, drawn
from limbeck.beds.images import CIFAR10, ImageBed
from limbeck.datasets import noise_images
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.plan import apply
from limbeck.quantization import FoldBatchNorm, MixedPrecision, Quantize

BED = CIFAR10
WIDTHS, MEAN, INPUTS = (2, 3, 4, 8), 4.0, 6
IMAGES, STEPS, RATE = 64, 300, 0.1


def random_bits(numbers: dict[str, int], mean: float, generator: torch.Generator) -> dict[str, int]:
    """Widths drawn at random whose mean is at most `mean`, with nothing left over that one more step up would use."""
    bits = {path: WIDTHS[int(torch.randint(len(WIDTHS), (), generator=generator))] for path in numbers}
    allowed = mean * sum(numbers.values())
    paths = list(numbers)

    def spent() -> int:
        return sum(numbers[path] * width for path, width in bits.items())

    while spent() > allowed:
        path = paths[int(torch.randint(len(paths), (), generator=generator))]
        bits[path] = WIDTHS[max(0, WIDTHS.index(bits[path]) - 1)]
    for at in torch.randperm(len(paths), generator=generator).tolist():
        for width in WIDTHS:
            if width > bits[paths[at]] and spent() + numbers[paths[at]] * (width - bits[paths[at]]) <= allowed:
                bits[paths[at]] = width
    return bits


def quantized(
    run: Run,
    images: str = "drawn",
    allocation: str = "frontier",
    steps: int = STEPS,
    inputs: int = INPUTS,
    mean: float = MEAN,
    bed: ImageBed = BED,
    **changes: Any,
) -> dict[str, float]:
    """images: what sensitivities and ranges come from, "drawn", "noise" or "real". allocation: "frontier", "uniform", "random" or "none"."""
    network = bed.trained_student(run, **changes)
    if allocation == "none":
        return {**bed.measure(run, network), "bits": 32.0}
    shape = (bed.channels, *bed.task().example(1)["pixel_values"].shape[2:])
    if images == "drawn":
        found = drawn(run, network, shape, IMAGES, steps, RATE)
    elif images == "noise":
        found = noise_images(IMAGES, shape, run.generator("images"))
    else:
        found = next(bed.task().batches("train", IMAGES, seed=run.seed))["pixel_values"]
    task, model = as_task(found), copy.deepcopy(network)
    apply(model, FoldBatchNorm().plan(model))
    settings = {"activation_bits": inputs, "calibration": "minmax", "examples": IMAGES, "batch_size": IMAGES}
    base = Quantize(bits=4, **settings)
    if allocation == "frontier":
        mixed = MixedPrecision(
            WIDTHS, average_bits=mean, solver="dynamic", quantize=base, examples=IMAGES, batch_size=IMAGES
        )
        plan = mixed.plan(model, task)
    else:
        plan = base.plan(model, task)
    modules = plan.decisions["modules"]
    numbers = {path: model.get_submodule(path).weight.numel() for path in modules}
    if allocation == "random":
        for path, width in random_bits(numbers, mean, run.generator("bits")).items():
            modules[path]["weight"]["bits"] = width
    used = sum(numbers[path] * entry["weight"]["bits"] for path, entry in modules.items()) / sum(numbers.values())
    run.record(allowed_bytes=mean * sum(numbers.values()) / 8)
    apply(model, plan)
    return {**bed.measure(run, model), "bits": used}


paper = Paper(
    id=291,
    title="ZeroQ: A Novel Zero Shot Quantization Framework",
    claim="Without any data, bits chosen on images drawn from batch-norm statistics are better than the same bits everywhere, than random "
    "bits of the same mean and than bits and ranges from noise, and as good as with real images.",
    composition='BatchNormMatching + FoldBatchNorm + MixedPrecision((2, 3, 4, 8), average_bits=4, sensitivity="kl", solver="dynamic")',
    metric="accuracy",
    method=Arm(quantized, about="drawn images, bits by the frontier"),
    baseline=Arm(quantized, {"allocation": "uniform"}, about="drawn images, 4 bits everywhere"),
    control=Arm(quantized, {"allocation": "random"}, about="drawn images, random bits"),
    others={
        "noise": Arm(quantized, {"images": "noise"}, about="Gaussian images, bits by the frontier"),
        "real": Arm(quantized, {"images": "real"}, about="training images, bits by the frontier"),
        "float": Arm(quantized, {"allocation": "none"}, about="not quantized"),
    },
    comparisons=(
        Comparison(text="against 4 bits everywhere"),
        Comparison(against="control", text="against random bits"),
        Comparison(against="noise", text="against noise"),
        Comparison(against="real", margin=0.01, text="as good as real images, to one point"),
        Comparison(against="float", margin=0.02, decisive=False, text="as good as float, to two points"),
    ),
    miniature=Miniature(
        beds=(BED,),
        seeds=5,
        equal=(),
        why_unequal="nothing is trained; every arm keeps to the same mean of bits, which it reports as `bits`",
    ),
    left_out="ImageNet, detection, MobileNet and the comparison with DFQ; running time on large networks; mixed bits of activations.",
)
