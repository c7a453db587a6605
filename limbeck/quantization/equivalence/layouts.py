"""Layouts: which linear layers read which norm, and which layer alone feeds which, in the models we know.

A table, no tracing: a transformer block is known by its class, and each of its parts by the layers inside, all of them. A part
with one layer more than the table has (an adapter, a norm of the queries, a layer that is quantized already) is not known; nothing
in it is touched, and it is listed with the reason.

    norm -> readers             y = W (g * n(x) + b): any scale of a channel of the norm's output can move into W
    value -> output             attention mixes positions, never channels: value_c / s_c, output's column c times s_c
    factor -> output            of a gated feed-forward layer, act(gate) * up: up_c / s_c, down's column c times s_c
    layer -> ReLU -> layer      of convolutional networks without batch norm: relu(x / s) = relu(x) / s for s > 0
    residual stream             everything that is written to it and read from it, for rotations
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from limbeck.pruning.attention import find_attention
from limbeck.pruning.slicing import is_conv1d, width
from limbeck.quantization.equivalence.folds import Fold
from limbeck.quantization.equivalence.tables import BLOCKS, NORMS, ROOTS, Part

HOMOGENEOUS = (nn.Identity, nn.ReLU, nn.LeakyReLU, nn.Dropout, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


@dataclass(frozen=True)
class Stream:
    """The residual stream of a whole model: `norms` maps every norm that reads it to the layers that alone read that norm."""

    embeddings: tuple[str, ...]
    parameters: tuple[str, ...]
    norms: dict[str, tuple[str, ...]]
    writers: tuple[str, ...]
    width: int
    centred: bool  # its norms subtract the mean over channels
    tied: tuple[str, ...]  # heads that share an embedding's weight


@dataclass(frozen=True)
class Layout:
    """What we know of a model. `stream`: None, and `no_stream` says why. left_alone: path -> why nothing before it can be scaled."""

    folds: tuple[Fold, ...]
    stream: Stream | None
    no_stream: str = ""
    left_alone: dict[str, str] = field(default_factory=dict)


def layout(model: nn.Module) -> Layout:
    """Read a model against the tables. Nothing runs, nothing is changed."""
    modules = dict(model.named_modules())
    users = _users(model)
    parts, left = [], {}
    for path, module in modules.items():
        for index, (inside, alternatives) in enumerate(_branches(BLOCKS.get(_key(module), ()))):
            found = [part for part in alternatives if _fits(modules, path, part)]
            if found:
                parts.append((path, index, found[0]))
            else:
                left |= dict.fromkeys(
                    _weighted(modules, _join(path, inside)), "its block holds layers the table does not have"
                )
    folds = [*_norm_folds(modules, users, parts, left), *_mixed_folds(model, modules, users, parts, left)]
    stream, why = _stream(model, modules, users, parts)
    if stream is not None:
        last = list(stream.norms)[-1]
        fold = _fold("final", last, stream.norms[last], modules, users, left)
        folds += [fold] if fold else []
    folds += _relu_folds(modules, users)
    read = {reader for fold in folds for reader in fold.readers}
    for path, module in modules.items():
        if path and _linear(module) and path not in read:
            left.setdefault(path, "no table says what alone feeds it")
    return Layout(tuple(folds), stream, why, {path: why for path, why in left.items() if path not in read})


def _key(module: nn.Module) -> str:
    return f"{type(module).__module__}:{type(module).__qualname__}"


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)


def _linear(module: nn.Module) -> bool:
    plain = type(module) in (nn.Linear, nn.Conv2d) or is_conv1d(module)
    return plain and type(module._parameters.get("weight")) is nn.Parameter


def _users(model: nn.Module) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), set()).add(name.rpartition(".")[0])
    return found


def _weighted(modules: dict[str, nn.Module], path: str) -> list[str]:
    """Paths at or below `path` of modules with parameters of their own."""
    inside = (p for p in modules if not path or p == path or p.startswith(path + "."))
    return [p for p in inside if modules[p]._parameters or getattr(modules[p], "limbeck_quantized", False)]


def _branches(parts: tuple[Part, ...]) -> list[tuple[str, list[Part]]]:
    """Parts by what they are inside of; several of one submodule are alternatives."""
    found: dict[str, list[Part]] = {}
    for part in parts:
        found.setdefault(part.inside, []).append(part)
    return list(found.items())


def _matches(modules: dict[str, nn.Module], inside: str, patterns: tuple[str, ...]) -> list[str]:
    weighted = _weighted(modules, inside)
    return [p for pattern in patterns for p in weighted if fnmatch.fnmatchcase(p, _join(inside, pattern))]


def _fits(modules: dict[str, nn.Module], path: str, part: Part) -> bool:
    inside = _join(path, part.inside)
    if inside not in modules or (part.norm and not _norm(modules.get(_join(path, part.norm)))):
        return False
    readers, writers = (_matches(modules, inside, names) for names in (part.readers, part.writers))
    layers = [p for p in (*readers, *writers) if not _norm(modules[p])]
    return (
        bool(readers and writers)
        and {*readers, *writers} == set(_weighted(modules, inside))
        and all(_linear(modules[p]) for p in layers)
    )


def _norm(module: nn.Module | None) -> bool:
    return type(module).__name__ in NORMS and type(module._parameters.get("weight")) is nn.Parameter


def _fold(kind: str, source: str, readers, modules, users, left, **sizes: int) -> Fold | None:
    """The fold, unless a weight of it is shared with a module outside (then the readers are listed)."""
    inside = {source, *readers}
    for path in (source, *readers):
        other = sorted(users[id(modules[path].weight)] - inside)
        others = [o for o in other if modules[o] is not modules[path]]
        if others:
            left |= dict.fromkeys(readers, f"the weight of {path!r} is tied to {others[0]!r}")
            return None
    if not sizes:
        sizes = {"width": width(modules[readers[0]], "in")}
    return Fold(kind, source, tuple(readers), **sizes)


def _norm_folds(modules, users, parts, left) -> Iterator[Fold]:
    for path, _, part in parts:
        inside = _join(path, part.inside)
        readers = _matches(modules, inside, part.readers)
        if part.norm is None:
            left |= dict.fromkeys(readers, "it reads the residual stream itself")
            continue
        fold = _fold("norm", _join(path, part.norm), readers, modules, users, left)
        if fold:
            yield fold


def _mixed_folds(model, modules, users, parts, left) -> Iterator[Fold]:
    inside = {_join(path, part.inside): part for path, _, part in parts}
    for path, part in inside.items():
        if part.factor:
            (writer,) = part.writers
            fold = _fold("factor", f"{path}.{part.factor}", [f"{path}.{writer}"], modules, users, left)
            if fold:
                yield fold
    for found in find_attention(model):
        if not any(found.output.startswith(path + ".") for path in inside):
            continue
        fused = found.query == found.value
        start = (found.heads + found.groups) * found.head_dim if fused else 0
        repeat = found.heads // found.groups
        sizes = {"start": start, "groups": found.groups, "repeat": repeat, "width": found.head_dim}
        fold = _fold("value", found.value, [found.output], modules, users, left, **sizes)
        if fold:
            yield fold


def _relu_folds(modules, users) -> Iterator[Fold]:
    """Neighbours in a Sequential, and the two convolutions of a residual block, with nothing but a ReLU (or the like) between."""
    pairs = []
    for path, module in modules.items():
        if _key(module) == "limbeck.models.resnet:BasicBlock" and type(module.bn1) is nn.Identity:
            pairs.append((_join(path, "conv1"), _join(path, "conv2")))
        if type(module) is not nn.Sequential:
            continue
        before = None
        for name, child in module.named_children():
            if _linear(child):
                if before and type(modules[before]) is type(child):
                    pairs.append((before, _join(path, name)))
                before = _join(path, name)
            elif not isinstance(child, HOMOGENEOUS):
                before = None
    for source, reader in pairs:
        if _linear(modules[source]) and _linear(modules[reader]) and width(modules[reader], "in"):
            fold = _fold("relu", source, [reader], modules, users, {})
            if fold:
                yield fold


def _stream(model, modules, users, parts) -> tuple[Stream | None, str]:
    root = ROOTS.get(_key(model))
    if root is None:
        return None, f"{type(model).__name__} is in no table of whole models"
    blocks = [p for p in modules if fnmatch.fnmatchcase(p, root.blocks) and p.count(".") == root.blocks.count(".")]
    known = {(path, part.inside): part for path, _, part in parts}
    expected = {block: {part.inside for part in BLOCKS.get(_key(modules[block]), ())} for block in blocks}
    for block, insides in expected.items():
        if not insides or any((block, inside) not in known for inside in insides):
            return None, f"{block!r} is not a block as the table has it"
    embeddings = [p for p in root.embeddings if isinstance(modules.get(p), (nn.Embedding, nn.Conv2d))]
    heads = [p for p in root.heads if p in modules]
    parameters = [name for name, _ in model.named_parameters() if name in root.parameters]
    owners = {name.rpartition(".")[0] for name in parameters}
    outside = set(_weighted(modules, "")) - {p for block in blocks for p in _weighted(modules, block)}
    odd = sorted(outside - {*embeddings, *heads, *owners, root.norm})
    bare = {
        f"{owner}.{name}".lstrip(".")
        for owner in owners
        for name, p in modules[owner]._parameters.items()
        if p is not None
    }
    if odd or bare - set(parameters) or not embeddings or not heads or not _norm(modules.get(root.norm)):
        return None, f"it has modules that the table does not have: {', '.join(odd or sorted(bare)) or root.norm}"
    if not all(_linear(modules[head]) for head in heads):
        return None, "a head is no plain linear layer"
    norms, writers = {}, []
    for block in blocks:
        for inside in expected[block]:
            part = known[block, inside]
            if part.norm is None:
                return None, f"the norms of {block!r} stand on the residual stream itself"
            norms[_join(block, part.norm)] = tuple(_matches(modules, _join(block, inside), part.readers))
            writers += _matches(modules, _join(block, inside), part.writers)
    norms[root.norm] = tuple(heads)
    tied = tuple(h for h in heads if len(users[id(modules[h].weight)]) > 1)
    for path in {*writers, *norms, *(r for readers in norms.values() for r in readers)} - set(tied):
        others = [o for o in users[id(modules[path].weight)] if modules[o] is not modules[path]]
        if others:
            return None, f"the weight of {path!r} is tied to {others[0]!r}"
    kinds = {type(modules[norm]).__name__ == "LayerNorm" for norm in norms}
    if len(kinds) > 1:
        return None, "its norms are of several kinds"
    size = modules[root.norm].weight.numel()
    return Stream(tuple(embeddings), tuple(parameters), norms, tuple(writers), size, kinds.pop(), tied), ""
