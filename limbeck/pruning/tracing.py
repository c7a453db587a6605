"""Tracing: from the autograd graph of one forward pass to groups of channels and neurons, by torch-pruning.

Why that library, and what of it, is told in `groups`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from limbeck.pruning.slicing import dimensions, is_conv1d, is_depthwise, width
from limbeck.signals import call

_STEPS_PER_NODE = 6  # how many steps one walk may take before it counts as endless; the walks that end take up to 2


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


def trace(probe: nn.Module, example: Mapping[str, Any], outputs: Sequence[str], inside: set[str]):
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
                output_transform=lambda out: [t for t in tensors_of(out) if t.grad_fn is not None],
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
        if not isinstance(module, (nn.Linear, _ConvNd)) and not is_conv1d(module):
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
        made = [paths[m] for m in _producers(traced) if m in paths]
        covered.update(made)
        if isinstance(found, Group):
            yield path, found
        else:
            yield from ((other, found) for other in dict.fromkeys([path, *made]))


def _producers(traced: Any) -> list[nn.Module]:
    """The layers whose outputs a traced group cuts."""
    targets = [(entry.dep.target.module, entry.dep.handler.__name__) for entry in traced]
    return [m for m, handler in targets if "out_channels" in handler and (_linear(m) or isinstance(m, _ConvNd))]


def _detached(_: nn.Module, args: tuple) -> tuple:
    return (args[0].detach().requires_grad_(), *args[1:])


def tensors_of(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return [tensor for value in values for tensor in tensors_of(value)]


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
