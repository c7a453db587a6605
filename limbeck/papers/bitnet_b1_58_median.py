"""BitNet b1.58 reloaded: ternary weights whose scale is the median magnitude, trained in small networks.

Idea: every linear layer computes with weights in {-1, 0, 1} times one scale while it is trained, and with int8 inputs. BitNet b1.58 takes the
mean magnitude as that scale; the median is not moved by outliers and, being smaller for heavy tails, leaves fewer zeros.

    W^ = s clamp(round(W / s), -1, 1),   s = median |W| or mean |W|,   x^ = int8 per token of LayerNorm(x),   gradients pass straight through

Source: Nielsen and Schneider-Kamp, "BitNet b1.58 Reloaded: State-of-the-art performance also on smaller networks", 2024, section 3; of the
mean: Ma et al., "The era of 1-bit LLMs", 2024. The authors' public code was read: it holds the scale above 1e-5 by a clamp (the formula
adds it), multiplies inputs by 128 and clips to 127, and normalizes over all axes but the first. Here the scale has no floor (a tensor
of zeros stays one; a median of 0 gives way to the mean), inputs use 127, and each token is normalized by itself.
Pieces: `TernaryGrid`, `Quantize(grid="ternary", method="absmedian", activations="dynamic")`, `normalize_inputs`, `prepare_qat`.

The miniature: the claim's two halves in one arm. Vision: a perceptron of two hidden layers on 500 MNIST images, ternary at equal size.
Language: characters of Shakespeare, one block; ternary with twice the hidden size against float. Every arm trains the perceptron and the
blocks of width 32 and 64 with the same layers, normalized inputs included; `loss` is that of width 64 for ternary and of width 32 for
float. All numbers are those of the packed model, five weights to a byte, with int8 products; embeddings and the tied head stay float.
Margins, fixed before the run: 0.02 nats a character, 1 point of accuracy. Learning rates are chosen by the language loss on validation. That of the
perceptron is 1e-3 everywhere. One run was made for the verdict: in language the claim holds, twice as wide is 0.10 nats better than float
and equal width ties, and training on the grid is worth 0.56 nats; but the perceptron, on its few images, is 4 points below float at
equal size, so the claim as a whole does not hold here. Median against mean is inconclusive: 0.018 nats
better, the interval (0.025 worse to 0.060 better) reaches past the margin.
"""

from __future__ import annotations

from torch import nn

from limbeck.beds.images import MNIST_FEW, ImageBed
from limbeck.beds.language import LanguageBed
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.objectives import CrossEntropy
from limbeck.plan import apply
from limbeck.quantization import Quantize, finish_qat, normalize_inputs, prepare_qat
from limbeck.training import Distil

TEXT = LanguageBed(length=64, blocks=200)
WIDTHS = (32, 64)


def perceptron(inputs: int, classes: int = 10, width: int = 128) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
    )


def trained(fit, model: nn.Module, scale: str | None, after: bool) -> nn.Module:
    """The model after training with `fit`: in float (scale None), on ternary weights, or put on them afterwards."""
    normalize_inputs(model)
    if scale is None:
        return fit(model)
    plan = Quantize(grid="ternary", weights="tensor", method=scale, activations="dynamic").plan(model)
    if after:
        return apply(fit(model), plan).eval()
    return apply(*finish_qat(fit(prepare_qat(model, plan)))).eval()


def compare(
    run: Run,
    scale: str | None = "absmedian",
    after: bool = False,
    rate: float = 3e-3,
    steps: int = 300,
    epochs: int = 12,
    text: LanguageBed = TEXT,
    images: ImageBed = MNIST_FEW,
) -> dict[str, float]:
    """Train and measure the perceptron and both language models. scale: None for float; after: ternary only after training."""

    def on_images(model: nn.Module) -> nn.Module:
        config = {"optimizer": "adamw", "learning_rate": 1e-3, "epochs": epochs}
        run.train(Distil(model, None, CrossEntropy()), images.task(), images.config(**config))
        return model.eval()

    def on_text(model: nn.Module) -> nn.Module:
        return text.fit(run, model, steps=steps, learning_rate=rate)

    pixels = images.channels * images.task().example()["pixel_values"].shape[-1] ** 2
    seen = images.measure(run, trained(on_images, run.fresh(lambda: perceptron(pixels)), scale, after))
    losses = []
    for width in WIDTHS:
        model = trained(on_text, text.student(run, width=width), scale, after)
        losses.append(text.measure(run, model)["loss"])
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    return {
        "loss": losses[0 if scale is None else 1],
        "narrow_loss": losses[0],
        "wide_loss": losses[1],
        "accuracy": seen["accuracy"],
        "wide_bytes": size,
    }


RATES = (3e-3, 8e-3)

paper = Paper(
    id=257,
    title="BitNet b1.58 Reloaded: State-of-the-art Performance Also on Smaller Networks",
    claim="Ternary training works in small networks: with doubled hidden size a small language model reaches the float one, a small "
    "vision model does so at equal size, and the median serves as well as the mean as scale.",
    composition='finish_qat(prepare_qat(normalize_inputs(model), Quantize(grid="ternary", weights="tensor", method="absmedian", '
    'activations="dynamic").plan(model)))',
    metric="loss",
    better="lower",
    method=Arm(compare, tune={"rate": RATES}, about="ternary, median scale; the language model is twice as wide"),
    baseline=Arm(compare, {"scale": None}, tune={"rate": RATES}, about="float"),
    control=Arm(compare, {"after": True}, tune={"rate": RATES}, about="trained in float, ternary afterwards (median)"),
    others={
        "mean": Arm(compare, {"scale": "absmean"}, tune={"rate": RATES}, about="ternary, mean scale (BitNet b1.58)"),
    },
    comparisons=(
        Comparison(margin=0.02, text="twice as wide, as good as float in loss, to 0.02 nats"),
        Comparison("accuracy", better="higher", margin=0.01, text="vision at equal size, as good as float, to a point"),
        Comparison(against="mean", margin=0.02, text="median as good as mean, to 0.02 nats"),
        Comparison(against="control", text="trained ternary against ternary afterwards"),
        Comparison("narrow_loss", margin=0.02, decisive=False, text="language at equal size against float"),
        Comparison("accuracy", against="mean", better="higher", decisive=False, text="vision: median against mean"),
    ),
    miniature=Miniature(beds=(TEXT, MNIST_FEW), seeds=3),
    left_out="Encoder models, node classification, CIFAR; weight-decay sweeps; ramping the quantization in; deeper networks.",
)
