"""Numbers as words: one way to write a value, a ratio and a spread, for the terminal and for the page."""

from __future__ import annotations

import math

from limbeck.measure.base import Measurement

TITLES = {
    "accuracy": "Accuracy",
    "mean_iou": "Mean IoU",
    "loss": "Loss",
    "calibration_error": "Calibration error",
    "perplexity": "Perplexity",
    "ndcg@10": "nDCG@10",
    "parameters": "Parameters",
    "bytes": "Size",
    "flops": "FLOPs",
    "latency": "Latency",
    "throughput": "Throughput",
    "peak_memory": "Peak memory",
    "drop": "Quality drop",
    "memory": "Peak memory",
}
PERCENT = ("accuracy", "mean_iou", "class_accuracy", "calibration_error")
LESS = {"bytes": "smaller", "latency": "faster"}
MORE = {"bytes": "larger", "latency": "slower"}
DECIMAL = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))
TIME = ((3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
MINUS = "−"


def title(name: str) -> str:
    """A measurement's name for people."""
    return TITLES.get(name, name.replace("_", " ").capitalize())


def significant(value: float, digits: int = 3) -> str:
    """A number with this many significant digits, in plain notation, whole numbers with thousands separators."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(digits - 1 - math.floor(math.log10(abs(rounded))), 0)
    if decimals > 6:
        return f"{value:.{digits - 1}e}".replace("-", MINUS)
    return f"{rounded:,.{decimals}f}".replace("-", MINUS)


def scaled(value: float, steps: tuple[tuple[float, str], ...], unit: str = "", digits: int = 3) -> str:
    """A number in the largest step that it fills: 81234 -> 81.2 kB."""
    magnitude = abs(float(f"{value:.{digits - 1}e}"))
    size, prefix = next(((s, p) for s, p in steps if magnitude >= s), steps[-1])
    text = significant(value / size, digits) if not (size == 1 and float(value).is_integer()) else f"{value:,.0f}"
    return f"{text} {prefix}{unit}".rstrip()


def quantity(value: float, name: str, unit: str) -> str:
    """A value for reading: 98.21 %, 81.2 kB, 1.34 ms, 12.4 k/s."""
    if name in PERCENT:
        return f"{100 * value:.2f} %"
    if unit == "bytes":
        return scaled(value, DECIMAL, "B")
    if unit == "seconds":
        return scaled(value, TIME)
    if unit == "items/s":
        return (significant(value) if value < 1e6 else scaled(value, DECIMAL)) + "/s"
    if unit in ("parameters", "FLOPs"):
        return scaled(value, DECIMAL)
    return significant(value, 4) + (f" {unit}" if unit else "")


def exact(value: float, name: str, unit: str) -> str:
    """A value in full: 81,234 bytes."""
    if name in PERCENT:
        return f"{100 * value:.4g} %"
    text = f"{value:,.0f}" if float(value).is_integer() else f"{value:.6g}"
    return f"{text} {unit}".strip()


def shown(measurement: Measurement) -> str:
    """A measurement's value for reading."""
    return quantity(measurement.value, measurement.name, measurement.unit)


def spread(measurement: Measurement) -> str:
    """`1.21 ms to 1.40 ms, 30 runs`; empty for an exact count or a single run."""
    low, high = measurement.low, measurement.high
    if measurement.runs < 2 or low is None or high is None:
        return ""
    ends = [quantity(bound, measurement.name, measurement.unit) for bound in (low, high)]
    for unit in (" " + ends[1].rpartition(" ")[2], "/s"):
        if all(end.endswith(unit) for end in ends):
            ends[0] = ends[0].removesuffix(unit)
            break
    return f"{ends[0]}–{ends[1]}, {measurement.runs} runs"


def is_quality(measurement: Measurement) -> bool:
    """Whether it says how good the model is, not what it costs."""
    return measurement.unit == ""


def factor(first: float, other: float) -> str:
    """`12.3×`: how many times one is in the other."""
    return significant(first / other, 3 if first / other >= 0.1 else 2) + "×"


def change(first: Measurement, now: Measurement) -> str:
    """What became of the first stage's value: `4.10× smaller`, `−0.61 points`, `+0.021`; empty where nothing can be said."""
    if is_quality(now):
        difference = now.value - first.value
        if now.name in PERCENT:
            return signed(100 * difference, 2) + " points"
        return signed(difference, 4)
    if first.value <= 0 or now.value <= 0:
        return ""
    if first.value == now.value:
        return "same"
    if now.better == "higher":
        return factor(now.value, first.value)
    if now.value < first.value:
        return f"{factor(first.value, now.value)} {LESS.get(now.name, 'less')}"
    return f"{factor(now.value, first.value)} {MORE.get(now.name, 'more')}"


def signed(value: float, decimals: int) -> str:
    """A number with its sign: +0.21, −0.61, and plain 0 with ±."""
    text = f"{abs(value):.{decimals}f}"
    if not float(text):
        return f"±{text}"
    return ("+" if value > 0 else MINUS) + text
