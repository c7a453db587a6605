"""Small classifiers of 1-D signals with several channels: a convolutional one, and a transformer over convolved tokens."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from limbeck.build import Factory, with_lineage
from limbeck.errors import UsageError
from limbeck.models.layers import Block, check_sizes, initialize


def _reduction(channels: int, width: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv1d(channels, width, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm1d(width), nn.ReLU())


class SignalCNN(nn.Module):
    """Convolutions of stride 2, the mean over time, a linear layer. `forward(signal)`: (B, channels, L) -> logits (B, classes)."""

    def __init__(self, widths: Sequence[int], kernel: int, classes: int, channels: int):
        super().__init__()
        sources = (channels, *widths[:-1])
        self.stages = nn.Sequential(*(_reduction(i, o, kernel, 2) for i, o in zip(sources, widths)))
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, signal: Tensor) -> Tensor:
        return self.fc(self.stages(signal).mean(2))


class SignalTransformer(nn.Module):
    """Stages of a convolution that halves the length and of transformer blocks on its places; the mean over time, a linear layer.

    `forward(signal)`: (B, channels, L) -> logits (B, classes). Tokens are convolved before every stage, so places need no embedding.
    """

    def __init__(
        self, widths: Sequence[int], depth: int, kernel: int, heads: int, classes: int, channels: int, dropout: float
    ):
        super().__init__()
        sources = (channels, *widths[:-1])
        self.embeddings = nn.ModuleList(_reduction(i, o, kernel, 2) for i, o in zip(sources, widths))
        self.stages = nn.ModuleList(
            nn.ModuleList(Block(width, heads, 2 * width, dropout) for _ in range(depth)) for width in widths
        )
        self.norm, self.fc = nn.LayerNorm(widths[-1]), nn.Linear(widths[-1], classes)
        initialize(self.stages, depth * len(widths))

    def forward(self, signal: Tensor) -> Tensor:
        x = signal
        for embed, blocks in zip(self.embeddings, self.stages):
            x = embed(x).transpose(1, 2)
            for block in blocks:
                x = block(x)
            x = x.transpose(1, 2)
        return self.fc(self.norm(x.transpose(1, 2)).mean(1))


def _checked(family: str, widths: Sequence[int], kernel: int, **sizes: int) -> list[int]:
    found = {"kernel": kernel, **sizes, **{f"widths[{at}]": width for at, width in enumerate(widths)}}
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{family}: {name} must be a whole number of at least 1, not {value!r}")
    if not widths or kernel % 2 == 0:
        raise UsageError(f"{family}: widths={tuple(widths)} must not be empty and kernel={kernel} must be odd")
    return list(widths)


def signal_cnn(widths: Sequence[int] = (16, 32, 32), kernel: int = 7, classes: int = 6, channels: int = 2) -> SignalCNN:
    """A convolutional net for signals; the default has some ten thousand parameters. Raises UsageError for bad sizes."""
    arguments = {"widths": _checked("signal_cnn", widths, kernel, classes=classes, channels=channels)}
    arguments |= {"kernel": kernel, "classes": classes, "channels": channels}
    return with_lineage(SignalCNN(**arguments), Factory("limbeck.models.signal:signal_cnn", arguments))


def signal_transformer(
    widths: Sequence[int] = (32, 64),
    depth: int = 2,
    kernel: int = 7,
    heads: int = 4,
    classes: int = 6,
    channels: int = 2,
    dropout: float = 0.0,
) -> SignalTransformer:
    """A convolutional transformer for signals of even length, `depth` blocks per stage.

    Source of the form: "ClST: A Convolutional Transformer Framework for Automatic Modulation Recognition by Knowledge Distillation", 2023, of
    which the abstract could be read; convolved queries and its attention over channels are not here. Raises UsageError for bad sizes.
    """
    widths = _checked("signal_transformer", widths, kernel, classes=classes, channels=channels, depth=depth)
    for width in widths:
        check_sizes("signal_transformer", width, heads, dropout)
    arguments = {"widths": widths, "depth": depth, "kernel": kernel, "heads": heads}
    arguments |= {"classes": classes, "channels": channels, "dropout": dropout}
    return with_lineage(SignalTransformer(**arguments), Factory("limbeck.models.signal:signal_transformer", arguments))
