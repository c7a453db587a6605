"""Genie: quantize a network without data: images from a generator that learns to please its batch norms; roundings and scales learned together.

    Genie-D   x = G(z), both z and the weights of G trained so that every batch norm sees the mean and deviation it has stored, while strided
              convolutions swing (their input is shifted at random by up to a pixel)
    Genie-M   W_q = s (clip(B + h(V), low, high) - z),  B = floor(W / s_0) + z:  V and s trained on the output of each block

Source: Jeon et al., "Genie: Show Me the Data for Quantization", CVPR 2023; the catalogue's summary and the authors' public code were read.
Their code divides the batch norms' terms by the number of channels, where the formula, and this, sums. Pieces: `GeneratedSet`,
`BatchNormMatching(per_image="input", swing=True)` of `limbeck.datasets`; `BlockReconstruction(scale_rate)` of `limbeck.quantization`.
Deviations: rates fall by one cosine in place of plateaus and exponentials; s_0 has the least squared error (the paper: the power 2.4); no
activations on their grid while blocks are trained (LSQ, QDrop), their ranges are the smallest and largest values; the first and the last layer
stay in float (the paper: 8 bits); weights are symmetric, because integer kernels take those; convolutions outside lists of blocks are rounded layer by layer.

The miniature: a ResNet-14 of width 8, trained once on 20000 CIFAR-10 images of 16 x 16, batch norms folded; weights of 2 bits per channel,
inputs of 6 bits; 64 images, which are what a seed varies. Baseline: pixels trained directly, batch statistics (ZeroQ). Control: Gaussian
noise. `real`: 64 training images. `fixed`: real images, scales not trained (BRECQ). All but float have two settings to choose from.
One run was made, without pilots of the miniature: steps of reconstruction and the scales' rate were set after small trials on random layers, where
scales that move while choices are soft did harm. What came out: generated images 0.542, pixels 0.519, noise 0.388, training images 0.570,
float 0.622: Genie-D holds. Scales learned with roundings, 0.570 against 0.559 on training images, are better in the mean but not surely.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn

from limbeck.beds.drawn import as_task, drawn
from limbeck.beds.images import CIFAR10, ImageBed, Network
from limbeck.datasets import noise_images
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.plan import apply
from limbeck.quantization import BlockReconstruction, FoldBatchNorm, Quantize

BED = CIFAR10
NETWORK = Network(14, 8)
IMAGES, STEPS, PIXEL_RATE, GENERATOR_RATE = 64, 200, 0.1, 0.01
GENERATOR = {"widths": [64, 32], "latent": 256}
BITS, INPUTS = 2, 6


def trained(run: Run, bed: ImageBed) -> nn.Module:
    """The network that everybody quantizes."""
    sizes = {"depth": NETWORK.depth, "width": NETWORK.width}
    return bed.trained_teacher(run, lambda: NETWORK.make(bed.channels), sizes)


def images_of(run: Run, bed: ImageBed, network: nn.Module, kind: str, steps: int) -> Tensor:
    """What the quantization sees: "generated", "pixels", "noise" or "real" images."""
    shape = (bed.channels, *bed.task().example(1)["pixel_values"].shape[2:])
    if kind == "real":
        return next(bed.task().batches("train", IMAGES, seed=run.seed))["pixel_values"]
    if kind == "noise":
        return noise_images(IMAGES, shape, run.generator("images"))
    if kind == "pixels":
        return drawn(run, network, shape, IMAGES, steps, PIXEL_RATE)
    return drawn(run, network, shape, IMAGES, steps, GENERATOR_RATE, GENERATOR)


def quantized(
    run: Run,
    images: str = "generated",
    scale_rate: float = 3e-4,
    penalty: float = 3.0,
    steps: int = STEPS,
    iterations: int = 150,
    bed: ImageBed = BED,
) -> dict[str, float]:
    """Roundings and, with a scale_rate, scales learned block by block on these images, which ranges of inputs come from, too."""
    network = trained(run, bed)
    task, model = as_task(images_of(run, bed, network, images, steps)), copy.deepcopy(network)
    apply(model, FoldBatchNorm().plan(model))
    rounding = BlockReconstruction(
        iterations=iterations, learning_rate=3e-2, penalty=penalty, seed=run.seed, scale_rate=scale_rate
    )
    settings = {"activation_bits": INPUTS, "calibration": "minmax", "examples": IMAGES, "batch_size": 16}
    transform = Quantize(bits=BITS, method="mse", rounding=rounding, ignore=["conv1", "fc"], **settings)
    apply(model, transform.plan(model, task))
    run.record(images=IMAGES)
    return bed.measure(run, model)


def unquantized(run: Run, bed: ImageBed = BED, steps: int = 0, iterations: int = 0) -> dict[str, float]:
    """The network as it is."""
    run.record(images=IMAGES)
    return bed.measure(run, trained(run, bed))


PENALTIES = {"penalty": (3.0, 30.0)}

paper = Paper(
    id=286,
    title="Genie: Show Me the Data for Quantization",
    claim="Without data, weights of 2 bits are better after reconstruction on images of a generator than on pixels trained directly and than on "
    "noise; and with data, roundings and scales learned together are better than roundings alone.",
    composition='BatchNormMatching(GeneratedSet(64, shape), network, "input", swing=True) + FoldBatchNorm + Quantize(bits=2, '
    'method="mse", rounding=BlockReconstruction(scale_rate=3e-4))',
    metric="accuracy",
    method=Arm(quantized, tune=PENALTIES, about="generated images, roundings and scales"),
    baseline=Arm(
        quantized, {"images": "pixels"}, tune=PENALTIES, about="pixels trained directly, roundings and scales"
    ),
    control=Arm(quantized, {"images": "noise"}, tune=PENALTIES, about="Gaussian images, roundings and scales"),
    others={
        "real": Arm(quantized, {"images": "real"}, tune=PENALTIES, about="training images, roundings and scales"),
        "fixed": Arm(
            quantized,
            {"images": "real", "scale_rate": 0.0},
            tune=PENALTIES,
            about="training images, roundings alone",
        ),
        "float": Arm(unquantized, about="not quantized"),
    },
    comparisons=(
        Comparison(text="against pixels trained directly"),
        Comparison(against="control", text="against noise"),
        Comparison(
            method="real", against="fixed", text="roundings and scales against roundings alone, training images"
        ),
        Comparison(against="real", margin=0.02, decisive=False, text="as good as training images, to two points"),
    ),
    miniature=Miniature(
        beds=(BED,),
        seeds=5,
        equal=("images",),
        why_unequal="nothing is trained on the task: arms see as many images, for as many steps of reconstruction",
    ),
    left_out="ImageNet; 4 and 2 bits of activations with LSQ and QDrop; the power 2.4 of the first scales; thousands of images and steps.",
)
