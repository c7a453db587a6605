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
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.pruning.attention import find_attention
from limbeck.pruning.slicing import dimensions, is_conv1d, is_depthwise, slice_module, width
from limbeck.signals import call, to_device

_STEPS_PER_NODE = 300  # how often one walk may look at a node's neighbours before it counts as endless


@dataclass(frozen=True, eq=False)
class Member:
    """`index` (items, positions) of one axis of a module; -1 pads items that own fewer positions there."""

    path: str
    axis: str
    index: Tensor


@dataclass(frozen=True, eq=False)
class Group:
    """`kind`: channels (of convolutions), neurons (of linear layers) or heads. `attributes`: (path, name, value per item)."""

    name: str
    kind: str
    items: int
    members: tuple[Member, ...]
    attributes: tuple[tuple[str, str, int], ...] = ()


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
    for root, found in _trace(probe, example, [block.output for block in blocks], inside):
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


# ---------------------------------------------------------------------------------------------------------- tracing


class _Bounded(list):
    """A list that may be walked only so often in all, together with those that share its counter."""

    def __init__(self, values: Iterable[Any], counter: list[int]):
        super().__init__(values)
        self.counter = counter

    def __iter__(self):
        self.counter[0] -= 1
        if self.counter[0] < 0:
            raise RecursionError("the dependency walk does not end")
        return super().__iter__()


def _trace(probe: nn.Module, example: Mapping[str, Any], outputs: Sequence[str], inside: set[str]):
    """Yield (root path, Group or the reason why there is none) for every linear and convolution layer outside attention."""
    import torch_pruning

    handles = [probe.get_submodule(path).register_forward_pre_hook(_detached) for path in outputs]
    graph = torch_pruning.DependencyGraph()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph.build_dependency(
                probe,
                example,
                forward_fn=lambda model, batch: call(model, batch),
                output_transform=lambda out: [t for t in _tensors(out) if t.grad_fn is not None],
                customized_pruners={type(m): _conv1d_axes() for m in probe.modules() if is_conv1d(m)} or None,
                verbose=False,
            )
    except Exception as error:
        yield "*", f"the model could not be traced: {type(error).__name__}: {error}"
        return
    finally:
        for handle in handles:
            handle.remove()
    counter = [0]
    for node in graph.module2node.values():
        node.dependencies = _Bounded(node.dependencies, counter)
    covered: set[str] = set(inside)
    paths = {module: path for path, module in probe.named_modules()}
    for module in list(graph.module2node):
        path = paths.get(module)
        if path is None or path in covered or is_depthwise(module) or isinstance(module, nn.PReLU):
            continue
        if not isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and not is_conv1d(module):
            continue
        if not dimensions(module):
            yield path, f"a {type(module).__name__} of this form cannot be sliced"
            continue
        counter[0] = _STEPS_PER_NODE * len(graph.module2node)
        try:
            pruner = graph.get_pruner_of_module(module)
            traced = graph.get_pruning_group(module, pruner.prune_out_channels, list(range(width(module, "out"))))
        except Exception as error:
            yield path, f"its dependencies could not be traced: {error}"
            continue
        found = _convert(path, module, traced, paths)
        if isinstance(found, Group):
            covered.update(m.path for m in found.members if m.axis == "out")
        yield path, found


def _detached(_: nn.Module, args: tuple) -> tuple:
    return (args[0].detach().requires_grad_(), *args[1:])


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return [tensor for value in values for tensor in _tensors(value)]


def _conv1d_axes() -> Any:
    from torch_pruning.pruner.function import LinearPruner

    class Axes(LinearPruner):
        """Sizes of the transformers Conv1D; only asked for sizes, never to prune."""

        def get_out_channels(self, layer: nn.Module) -> int:
            return layer.nf

        def get_in_channels(self, layer: nn.Module) -> int:
            return layer.nx

    return Axes()


def _convert(path: str, root: nn.Module, traced: Any, paths: Mapping[nn.Module, str]) -> Group | str:
    items = width(root, "out")
    owned: dict[tuple[str, str], list[set[int]]] = {}
    for entry in traced:
        module = entry.dep.target.module
        if isinstance(module, nn.Parameter):
            return "it runs through a parameter that no known module owns (a norm or an embedding)"
        if type(module).__name__ == "_OutputOp":
            return "it is an output of the model"
        if module not in paths:
            continue  # an operation without weights
        if not dimensions(module) and not isinstance(module, nn.modules.batchnorm._NormBase):
            if isinstance(module, nn.PReLU):
                continue  # one slope for all channels
            return f"it runs through {paths[module]!r}, a {type(module).__name__}"
        reads = "in_channels" in entry.dep.handler.__name__ and any("in" in a for a in dimensions(module).values())
        positions = owned.setdefault((paths[module], "in" if reads else "out"), [set() for _ in range(items)])
        for root_index, index in zip(entry.root_idxs, entry.idxs):
            if root_index is None:
                return f"the positions of {paths[module]!r} could not be followed back"
            positions[root_index].add(index)
    if not any(axis == "in" for _, axis in owned):
        return "nothing reads it but the output of the model"
    members = tuple(Member(p, axis, _padded(positions)) for (p, axis), positions in owned.items())
    return Group(path, "neurons" if dimensions(root)["weight"] and _linear(root) else "channels", items, members)


def _linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_conv1d(module)


def _padded(positions: Sequence[set[int]]) -> Tensor:
    index = torch.full((len(positions), max(1, *map(len, positions))), -1)
    for row, owned in enumerate(positions):
        index[row, : len(owned)] = torch.tensor(sorted(owned), dtype=torch.long)
    return index


# ------------------------------------------------------------------------------------------------- the numerical test


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
            expected = _tensors(call(masked, example))
            del masked
            small = cut(copy.deepcopy(probe), positions, attribute_values(groups, kept))
            found = _tensors(call(small, example))
    except Exception:
        return False
    return len(found) == len(expected) and all(
        a.shape == b.shape and (a - b).abs().max() <= 1e-3 * a.abs().max() + 1e-6
        for a, b in zip(expected, found)
        if a.numel() and a.is_floating_point()
    )
