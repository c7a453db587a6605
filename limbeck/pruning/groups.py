"""Groups: what has to be cut together when one channel, neuron or head goes.

A group has `items`; each of its members says which positions of one module's input or output axis an item owns:

    conv1 out -> bn1 out -> (+) -> layer1.0.conv1 in, layer2.0.shortcut.0 in, ...      one residual stream, 16 items

Decision record. torch-pruning 1.6 was evaluated for the tracing, on CIFAR ResNets, concatenation, depthwise convolutions, a
flatten before a Linear, and BERT, GPT-2 and Llama of transformers 5. Its autograd-graph dependency tracing is right on all
convolution patterns and on feed-forward neurons (also gated ones), and is used for these. Not used: its heads (a product
of queries and keys counts as element-wise, so heads need settings per model), its Llama tracing (rotary embeddings slice and
concatenate; the walk over index mappings never ends) and its pruning and importance (which act on data and on live
modules; a Plan must replay on an empty one). So attention cores are cut out of the traced graph and read by name
(`attention`), the walk is bounded, and since a tracer that takes unknown operations for element-wise ones can be wrong without
saying so, no group is used before it passed a numerical test: on a copy with perturbed weights,

    slicing half of the items away  ==  zeroing what reads them

for every output of the model. Groups that run through LayerNorm, RMSNorm or embeddings (the width of a transformer's residual
stream) are left alone: there the two sides differ by nature. So is whatever fails the test, with its reason.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.pruning.attention import find_attention
from limbeck.pruning.slicing import dimensions, slice_module, width
from limbeck.pruning.tracing import Group, Member, tensors_of, trace
from limbeck.signals import call, to_device


def find_groups(model: nn.Module, example: Mapping[str, Any]) -> tuple[list[Group], dict[str, str]]:
    """All groups that passed the numerical test, and {path: reason} of what is left alone. The model is not touched."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    example = {k: v.float() if _floats(v) else v for k, v in to_device(example, device).items()}
    probe = _perturbed(model)
    blocks = find_attention(probe)
    groups = [
        Group(
            block.query,
            "heads",
            block.groups,
            tuple(Member(path, axis, index) for (path, axis), index in block.positions().items()),
            block.attributes,
        )
        for block in blocks
    ]
    left: dict[str, str] = {}
    inside = {path for block in blocks for path in (block.query, block.key, block.value)}
    for root, found in trace(probe, example, [block.output for block in blocks], inside):
        if isinstance(found, str):
            left[root] = found
        else:
            groups.append(found)
    shared = _shared(model)
    for group in list(groups):
        tied = sorted({m.path for m in group.members} & shared)
        if tied or group.items < 2:
            groups.remove(group)
            left[group.name] = f"the weight of {tied[0]!r} is shared" if tied else "it has one item only"
    sound = _sound(probe, example, groups)
    for group in groups:
        if group not in sound:
            left[group.name] = "cutting it does not equal masking it"
    order = {path: position for position, (path, _) in enumerate(model.named_modules())}
    return sorted(sound, key=lambda group: order[group.name]), left


def kept_positions(
    model: nn.Module, groups: Iterable[Group], kept: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, list[int]]]:
    """{path: {axis: kept positions}} for kept items by group name; axes that lose nothing are absent."""
    modules = dict(model.named_modules())
    dropped: dict[tuple[str, str], set[int]] = {}
    for group in groups:
        gone = sorted(set(range(group.items)) - set(kept[group.name]))
        for member in group.members:
            positions = set(member.index[gone].flatten().tolist()) - {-1}
            if positions:
                dropped.setdefault((member.path, member.axis), set()).update(positions)
    result: dict[str, dict[str, list[int]]] = {}
    for (path, axis), gone in dropped.items():
        stay = [i for i in range(width(modules[path], axis)) if i not in gone]
        result.setdefault(path, {})[axis] = stay
    return result


def attribute_values(groups: Iterable[Group], kept: Mapping[str, Sequence[int]]) -> dict[str, dict[str, int]]:
    """{path: {attribute: new value}} for the groups that lose items."""
    values: dict[str, dict[str, int]] = {}
    for group in groups:
        if len(kept[group.name]) < group.items:
            for path, name, per_item in group.attributes:
                values.setdefault(path, {})[name] = per_item * len(kept[group.name])
    return values


def cut(
    model: nn.Module, kept: Mapping[str, Mapping[str, Sequence[int]]], attributes: Mapping[str, Mapping[str, int]]
) -> nn.Module:
    """Slice the named modules and set the named attributes, in place."""
    for path, axes in kept.items():
        slice_module(path, model.get_submodule(path), axes)
    for path, values in attributes.items():
        for name, value in values.items():
            setattr(model.get_submodule(path), name, value)
    return model


def _floats(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _perturbed(model: nn.Module) -> nn.Module:
    """A float32 copy in eval mode whose weights all differ from zero, so that no path through it is silent by chance."""
    probe = copy.deepcopy(model).float().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in probe.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
        spread = parameter.detach().std().nan_to_num() if parameter.numel() > 1 else 0.0
        parameter.data.add_(noise * (0.02 + 0.1 * spread))
        parameter.requires_grad_(True)
    return probe


def _shared(model: nn.Module) -> set[str]:
    """Paths of modules that share a parameter with another one."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    return {path for paths in owners.values() if len(paths) > 1 for path in paths}


def _sound(probe: nn.Module, example: Mapping[str, Any], groups: Sequence[Group]) -> list[Group]:
    """The groups for which cutting equals masking: all at once, and by halves where that fails."""
    if not groups or _cut_equals_masked(probe, example, groups):
        return list(groups)
    if len(groups) == 1:
        return []
    middle = len(groups) // 2
    return _sound(probe, example, groups[:middle]) + _sound(probe, example, groups[middle:])


def _cut_equals_masked(probe: nn.Module, example: Mapping[str, Any], groups: Sequence[Group]) -> bool:
    generator = torch.Generator().manual_seed(1)
    kept = {g.name: sorted(torch.randperm(g.items, generator=generator)[: -(-g.items // 2)].tolist()) for g in groups}
    positions = kept_positions(probe, groups, kept)
    readers = {(m.path, m.axis) for g in groups for m in g.members if m.axis == "in"}
    try:
        with torch.no_grad():
            masked = copy.deepcopy(probe)
            for path, axis in readers:
                module = masked.get_submodule(path)
                weight, dimension = module.weight, dimensions(module)["weight"][axis]
                gone = sorted(set(range(weight.shape[dimension])) - set(positions[path][axis]))
                weight.index_fill_(dimension, torch.tensor(gone, device=weight.device), 0)
            expected = tensors_of(call(masked, example))
            del masked
            small = cut(copy.deepcopy(probe), positions, attribute_values(groups, kept))
            found = tensors_of(call(small, example))
    except Exception:
        return False
    return len(found) == len(expected) and all(
        a.shape == b.shape and (a - b).abs().max() <= 1e-3 * a.abs().max() + 1e-6
        for a, b in zip(expected, found)
        if a.numel() and a.is_floating_point()
    )
