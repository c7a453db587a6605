"""Chains of blocks: where in a model a hidden state passes through modules of one class, found by running one batch.

A chain is a ModuleList or Sequential whose members have one class, run once each, and hand a hidden state from each to the next:
decoder layers, encoder layers, ViT blocks, the stages of a residual network. Nothing is traced.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.signals import call, first_tensor


@dataclass
class Call:
    """One call of a block: its arguments without the hidden state, where that one goes, and the mask (B, L) of its batch."""

    args: list[Any]
    kwargs: dict[str, Any]
    key: int | str
    mask: Tensor | None = None

    def run(self, block: Callable[..., Any], hidden: Tensor) -> Any:
        """What the block returns for this hidden state."""
        args, kwargs = list(self.args), dict(self.kwargs)
        (args if isinstance(self.key, int) else kwargs)[self.key] = hidden
        return block(*args, **kwargs)

    @staticmethod
    def of(args: Sequence[Any], kwargs: Mapping[str, Any], mask: Tensor | None) -> tuple[Call, Tensor]:
        """The call and its hidden state: the first argument, or `hidden_states`, or the first tensor. Caches are left out,
        because a block runs several times on one input."""
        key: int | str = 0
        if not args:
            tensors = [name for name, value in kwargs.items() if isinstance(value, Tensor)]
            key = "hidden_states" if "hidden_states" in kwargs else tensors[0]
        hidden = args[0] if args else kwargs[key]
        plain = [None if hasattr(value, "get_seq_length") else value for value in args]
        named = {name: None if hasattr(value, "get_seq_length") else value for name, value in kwargs.items()}
        if "use_cache" in named:
            named["use_cache"] = False
        (plain if isinstance(key, int) else named)[key] = None
        return Call(plain, named, key, mask), hidden


@dataclass
class Chain:
    path: str
    members: list[str]
    calls: list[list[Call]] = field(default_factory=list)  # per batch, per member
    hidden: list[Tensor] = field(default_factory=list)
    reference: list[Tensor] = field(default_factory=list)  # hidden states of the float model
    reference_calls: list[list[Call]] = field(default_factory=list)
    final: list[Any] = field(default_factory=list)  # what the last member returns, per batch
    final_reference: list[Any] = field(default_factory=list)


def containers(model: nn.Module, paths: Sequence[str]) -> dict[str, list[str]]:
    """Every list of several modules of one class that have chosen modules inside, by path: the paths of its members."""
    found = {}
    for path, module in model.named_modules():
        kinds = {type(child) for child in module.children()}
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or len(module) < 2 or len(kinds) != 1:
            continue
        members = [f"{path}.{name}" if path else name for name, _ in module.named_children()]
        if len(members) == len(module) and any(p.startswith(m + ".") for p in paths for m in members):
            found[path] = members
    return found


def order(model: nn.Module, batch: Mapping[str, Any], paths: Sequence[str]) -> list[Chain | list[str]]:
    """Chains and, between them, the chosen modules outside, in the order in which one batch reaches them."""
    candidates = containers(model, paths)
    owner = {member: path for path, members in candidates.items() for member in members}
    previous = {b: a for members in candidates.values() for a, b in itertools.pairwise(members)}
    followed = set(previous.values())
    events: list[str] = []
    outputs: dict[str, Tensor] = {}  # until the next member is called
    fed: set[str] = set()  # members that read what the one before them gave

    def enter(path: str):
        def before(_, args, kwargs):
            events.append(path)
            if path in previous and Call.of(args, kwargs, None)[1] is outputs.pop(previous[path], None):
                fed.add(path)

        return before

    def leave(path: str):
        def after(_, __, output):
            outputs[path] = first_tensor(output)

        return after

    handles = []
    try:
        for path in dict.fromkeys((*owner, *paths)):
            module = model.get_submodule(path)
            handles.append(module.register_forward_pre_hook(enter(path), with_kwargs=True))
            if path in followed:
                handles.append(module.register_forward_hook(leave(path)))
        with torch.no_grad():
            call(model, batch)
    finally:
        for handle in handles:
            handle.remove()

    times = Counter(events)

    def chained(members: list[str]) -> bool:
        return all(times[m] == 1 for m in members) and fed.issuperset(members[1:])

    taken: dict[str, Chain] = {}
    for path, members in candidates.items():  # outermost first
        if not any(path.startswith(f"{m}.") or path == m for c in taken.values() for m in c.members) and chained(
            members
        ):
            taken[path] = Chain(path, members)
    inside = tuple(f"{m}." for c in taken.values() for m in c.members)
    found: list[Chain | list[str]] = []
    done: set[str] = set()
    for path in events:
        chain = taken.get(owner.get(path, ""))
        name = chain.path if path in owner and chain is not None and path in chain.members else path
        if name in done or (name == path and (path not in paths or path.startswith(inside))):
            continue
        done.add(name)
        if name != path or (chain is not None and path in chain.members):
            found.append(chain)
        elif found and isinstance(found[-1], list):
            found[-1].append(path)
        else:
            found.append([path])
    return found
