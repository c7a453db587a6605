"""Drawing: escaped SVG and HTML elements, scales with clean ticks, axes, and labels that do not overlap."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

WIDE_RANGE = 8.0  # positive values that span more than this are drawn on a logarithmic axis
CHARACTER = 0.57  # mean width of a character in units of the font size, on the safe side
FONT = 12
MULTIPLES = ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,))


def text(value: object) -> str:
    """Text as text, whatever is in it."""
    return html.escape(str(value), quote=True)


def element(name: str, *children: str, **attributes: object) -> str:
    """One element. Children are markup already; attribute values are escaped; `class_` is class, `data_x` is data-x.

    An attribute that is None or False is left out, one that is True has no value.
    """
    parts = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(key)
        elif value is not None and value is not False:
            value = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
            parts.append(f'{key}="{text(value)}"')
    opening = " ".join(parts)
    if not children and name in ("line", "rect", "circle", "path", "polyline", "meta", "col"):
        return f"<{opening}/>"
    return f"<{opening}>{''.join(children)}</{name}>"


@dataclass(frozen=True)
class Scale:
    """Values in [low, high] to pixels in [start, stop], linearly or by their logarithm."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    @staticmethod
    def fit(values: Iterable[float], start: float, stop: float, margin: float = 0.08, log: bool | None = None) -> Scale:
        """A scale that holds the values with a margin; logarithmic when they are positive and span a wide range."""
        values = list(values)
        low, high = min(values), max(values)
        log = (low > 0 and high / low >= WIDE_RANGE) if log is None else log and low > 0
        if log:
            pad = max(math.log(high / low) * margin, 0.1)
            return Scale(low * math.exp(-pad), high * math.exp(pad), start, stop, True)
        pad = (high - low) * margin or abs(high) * 0.1 or 1.0
        return Scale(low - pad, high + pad, start, stop)

    def __call__(self, value: float) -> float:
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self, apart: float) -> list[float]:
        """Round values inside the scale, at least `apart` pixels from one another, as dense as that allows."""
        return self._log_ticks(apart) if self.log else self._linear_ticks(apart)

    def _linear_ticks(self, apart: float) -> list[float]:
        room = max(abs(self.stop - self.start) / apart, 1)
        rough = (self.high - self.low) / room
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        count = math.floor(self.high / step + 1e-9) - first
        return [float(f"{(first + i) * step:.12g}") for i in range(count + 1)]

    def _log_ticks(self, apart: float) -> list[float]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for multiples in MULTIPLES:
            found = [m * 10.0**p for p in powers for m in multiples]
            found = [value for value in found if self.low <= value <= self.high]
            pixels = [self(value) for value in found]
            if len(found) >= 2 and all(abs(b - a) >= apart for a, b in itertools.pairwise(pixels)):
                return found
        decades = [10.0**p for p in powers if self.low <= 10.0**p <= self.high]
        return self._spaced(decades if len(decades) > 1 else self._linear_ticks(apart), apart)

    def _spaced(self, values: Sequence[float], apart: float) -> list[float]:
        """The values from the first on that keep their distance from the one before."""
        kept: list[float] = []
        for value in values:
            if not kept or abs(self(value) - self(kept[-1])) >= apart:
                kept.append(value)
        return kept


@dataclass(frozen=True)
class Frame:
    """The plot area of a chart of `width` x `height`, inside its margins."""

    width: int
    height: int
    left: int = 56
    right: int = 14
    top: int = 26
    bottom: int = 42

    @property
    def across(self) -> tuple[float, float]:
        return float(self.left), float(self.width - self.right)

    @property
    def up(self) -> tuple[float, float]:
        return float(self.height - self.bottom), float(self.top)


def axes(
    frame: Frame,
    x: Scale,
    y: Scale,
    x_words: Callable[[float], str],
    y_words: Callable[[float], str],
    x_title: str,
    y_title: str,
    x_apart: float = 64,
    y_apart: float = 34,
) -> str:
    """Grid lines, tick words and titles of both axes. The y title stands above the axis, level."""
    left, right = frame.across
    bottom, top = frame.up
    parts = []
    for value in y.ticks(y_apart):
        at = y(value)
        parts.append(element("line", class_="grid", x1=left, x2=right, y1=at, y2=at))
        parts.append(element("text", text(y_words(value)), class_="tick", x=left - 8, y=at + 4, text_anchor="end"))
    for value in x.ticks(x_apart):
        at = x(value)
        parts.append(element("line", class_="grid", x1=at, x2=at, y1=bottom, y2=top))
        parts.append(element("text", text(x_words(value)), class_="tick", x=at, y=bottom + 17, text_anchor="middle"))
    parts.append(element("line", class_="axis", x1=left, x2=right, y1=bottom, y2=bottom))
    if y_title:
        parts.append(element("text", text(y_title), class_="title", x=4, y=12))
    parts.append(element("text", text(x_title), class_="title", x=right, y=frame.height - 5, text_anchor="end"))
    return "".join(parts)


Box = tuple[float, float, float, float]  # left, top, right, bottom


def overlap(a: Box, b: Box) -> float:
    """The area two boxes share."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


@dataclass(frozen=True)
class Label:
    """A label's words, where its text starts, ends or centres, its box, and whether a line must lead to its point."""

    words: str
    x: float
    y: float
    anchor: str
    box: Box
    led: bool


def place_labels(
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    bounds: Box,
    lines: Sequence[Box] = (),
    radius: float = 7,
) -> list[Label | None]:
    """A place near its point for every name, such that no two labels, and no label and point, overlap.

    Tries eight directions at growing distance and keeps the nearest free one. A name for which there is no room
    anywhere gets None (its point still says its name on hover and to a screen reader). `lines` are level or upright strokes,
    as boxes, that labels cross only where there is no other place close by.
    """
    taken = [(x - radius, y - radius, x + radius, y + radius) for x, y in points]
    placed: list[Label | None] = [None] * len(points)
    crowded = sorted(range(len(points)), key=lambda i: -_neighbours(i, points))
    for index in crowded:
        free = []
        for rank, label in enumerate(_candidates(points[index], names[index])):
            box = label.box
            inside = box[0] >= bounds[0] and box[1] >= bounds[1] and box[2] <= bounds[2] and box[3] <= bounds[3]
            if inside and not any(overlap(box, other) for other in taken):
                crossings = sum(bool(overlap(box, line)) for line in lines)
                free.append((rank + 17 * crossings, rank, label))
        if free:
            placed[index] = min(free, key=lambda entry: entry[:2])[2]
            taken.append(placed[index].box)
    return placed


def _neighbours(index: int, points: Sequence[tuple[float, float]]) -> int:
    return sum(math.dist(points[index], other) < 80 for other in points) - 1


def _candidates(point: tuple[float, float], name: str) -> Iterable[Label]:
    width, height = len(name) * FONT * CHARACTER, FONT * 1.2
    for distance in (10, 17, 26, 38, 52, 68, 86):
        for angle in (0, 180, -90, 90, -35, 35, -145, 145):
            x = point[0] + distance * math.cos(math.radians(angle))
            y = point[1] + distance * math.sin(math.radians(angle))
            side = round(math.cos(math.radians(angle)))
            anchor = {1: "start", -1: "end", 0: "middle"}[side]
            left = {1: x, -1: x - width, 0: x - width / 2}[side]
            middle = y + {-90: -height / 2 + 2, 90: height / 2 - 2}.get(angle, 0)
            box = (left - 1, middle - height / 2, left + width + 1, middle + height / 2)
            yield Label(name, x, middle + FONT * 0.35, anchor, box, distance > 17)


def shorten(name: str, length: int) -> str:
    """A name cut to a length, with an ellipsis."""
    return name if len(name) <= length else name[: length - 1].rstrip() + "…"
