"""Where the bytes are: every layer before and after, with its bit width, and each stage by bit width."""

from __future__ import annotations

from limbeck.report.report import Report, Stage
from limbeck.report.svg import element, text
from limbeck.report.words import quantity

SHADES = {"full": 17, "half": 9, "byte": 5, "few": 0}  # a class and the fewest bits it stands for


def pair_of(report: Report) -> tuple[Stage, Stage] | None:
    """The stages to set side by side: the last with layers, and the earliest whose layers are mostly of the same names.

    A student has other layers than its teacher; comparing those line by line would say nothing.
    """
    having = [stage for stage in report.stages if stage.layers]
    if not having:
        return None
    after = having[-1]
    alike = [stage for stage in having[:-1] if likeness(stage, after) >= 0.5]
    return (alike[0] if alike else having[0]), after


def likeness(a: Stage, b: Stage) -> float:
    """The share of layer names that two stages have in common."""
    names = {layer["path"] for layer in a.layers}, {layer["path"] for layer in b.layers}
    return len(names[0] & names[1]) / max(len(names[0] | names[1]), 1)


def layers(report: Report) -> str:
    """Stages as bars split by bit width, then one row per layer: bytes and bits before and after."""
    pair = pair_of(report)
    if pair is None:
        return ""
    return _composition(report) + _compared(*pair)


def _shade(bits: float) -> str:
    return next(name for name, least in SHADES.items() if bits >= least)


def _composition(report: Report) -> str:
    having = [stage for stage in report.stages if stage.layers]
    most = max(sum(layer["bytes"] for layer in stage.layers) for stage in having) or 1
    rows = []
    for stage in having:
        total, by_bits = sum(layer["bytes"] for layer in stage.layers), {}
        for layer in stage.layers:
            by_bits[layer["bits"]] = by_bits.get(layer["bits"], 0) + layer["bytes"]
        pieces, words = [], []
        for bits in sorted(by_bits, reverse=True):
            words.append(f"{bits:g} bits: {quantity(by_bits[bits], 'bytes', 'bytes')}")
            width = f"width:{100 * by_bits[bits] / most:.3f}%"
            pieces.append(element("span", class_=f"piece {_shade(bits)}", style=width))
        tip = "\n".join([stage.name, *words])
        bar = element(
            "div",
            *pieces,
            class_="track",
            data_tip=tip,
            tabindex=0,
            role="img",
            aria_label=", ".join([stage.name, *words]),
        )
        head = element("span", text(stage.name), class_="name") + element(
            "span", text(quantity(total, "bytes", "bytes")), class_="number"
        )
        rows.append(
            element(
                "li", element("div", head, class_="head"), bar, element("span", text(" · ".join(words)), class_="small")
            )
        )
    return element("h3", "Weights by bit width") + element("ol", *rows, class_="composition")


def _compared(before: Stage, after: Stage) -> str:
    old, new = ({layer["path"]: layer for layer in stage.layers} for stage in (before, after))
    stages = ((old, "before", before), (new, "after", after))[before is after :]
    paths = _in_order(list(old), list(new))
    most = max((layer["bytes"] for layer in (*old.values(), *new.values())), default=1) or 1
    rows = []
    for path in paths:
        kinds = [table[path]["kind"] for table in (old, new) if path in table]
        cells = [
            element("th", element("code", text(path)), element("span", text(kinds[-1]), class_="form"), scope="row")
        ]
        sizes = []
        for table, kind, _ in stages:
            layer = table.get(path)
            if layer is None:
                sizes.append(element("div", element("span", "–", class_="number"), class_="layer-bar"))
                continue
            width = f"width:{100 * layer['bytes'] / most:.2f}%"
            bar = element("span", element("span", class_=f"fill {kind}", style=width), class_="rail")
            sizes.append(
                element(
                    "div",
                    bar,
                    element("span", text(quantity(layer["bytes"], "bytes", "bytes")), class_="number"),
                    class_="layer-bar",
                )
            )
        cells.append(element("td", *sizes, class_="bars"))
        counts = [f"{table[path]['parameters']:,}" if path in table else "–" for table in (old, new)]
        bits = [f"{table[path]['bits']:g}" if path in table else "–" for table in (old, new)]
        cells += [
            element("td", text(_arrow(counts)), class_="number"),
            element("td", text(_arrow(bits)), class_="number"),
        ]
        rows.append(element("tr", *cells, data_path=path))
    head = element("tr", *(element("th", words, scope="col") for words in ("Layer", "Bytes", "Parameters", "Bits")))
    key = (element("li", element("span", class_=f"swatch {k}"), text(stage.name)) for _, k, stage in stages)
    table = element("table", element("thead", head), element("tbody", *rows), class_="layers")
    box = element("div", table, class_="scroll tall", tabindex=0, role="region", aria_label="Layers before and after")
    return element("h3", "Layer by layer") + element("ul", *key, class_="legend") + box


def _in_order(old: list[str], new: list[str]) -> list[str]:
    """All names, each new one after the one it followed in its own list."""
    merged = list(old)
    for index, path in enumerate(new):
        if path in merged:
            continue
        earlier = next((name for name in reversed(new[:index]) if name in merged), None)
        merged.insert(merged.index(earlier) + 1 if earlier is not None else 0, path)
    return merged


def _arrow(pair: list[str]) -> str:
    return pair[0] if pair[0] == pair[1] else f"{pair[0]} → {pair[1]}"
