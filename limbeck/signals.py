"""Signals: what a forward pass yielded, and the Tap that captures it.

A signal is named `"logits"` (the model's primary output: class scores, token scores or an embedding), by a module path as
`named_modules` gives it (`"layer3"`, `"encoder.layer.*.attention"`: that module's output), by `"PATH:input"` (that
module's first input), or by `"PATH:weight"` and `"PATH:bias"` (its parameters). Nothing that no objective asked for is captured.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.errors import UsageError, did_you_mean

LOGITS = "logits"
TOP_K = ("logits:values", "logits:classes", "logits:rest")  # logits as a cache of the top k keeps them
ALIGNED = "aligned"  # (B, L): where a teacher of another tokenizer has read the same text as the student
PARAMETERS = ("weight", "bias")  # of a module, as signals
TARGETS = ("labels", "index", "sample_weight", "epoch")  # batch keys that describe the examples; never model inputs


@dataclass(frozen=True)
class Reads:
    """The names of the signals an objective needs of the student and of the teacher."""

    student: frozenset[str] = frozenset()
    teacher: frozenset[str] = frozenset()

    def __or__(self, other: Reads) -> Reads:
        return Reads(self.student | other.student, self.teacher | other.teacher)


class Signals(Mapping[str, Tensor]):
    """Named tensors of one forward pass."""

    def __init__(self, values: Mapping[str, Tensor]):
        self._values = dict(values)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._values:
            raise UsageError(f"no signal {name!r} was captured. {did_you_mean(name, self._values)}")
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    @property
    def logits(self) -> Tensor:
        """The primary output."""
        return self[LOGITS]

    def detach(self) -> Signals:
        """The same tensors without gradient."""
        return Signals({name: value.detach() for name, value in self._values.items()})


def first_tensor(output: Any) -> Tensor:
    """The primary tensor of what a module returned: itself, `.logits`, an embedding, or the first element."""
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "sentence_embedding", "last_hidden_state"):
        value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    raise UsageError(
        f"a module returned {type(output).__name__}, which holds no tensor that Limbeck can read: return a tensor, a "
        "tuple that starts with one, or an object with .logits, .sentence_embedding or .last_hidden_state"
    )


def place_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Class scores of a map (B, classes, h, w) as (B, H, W, classes), resized to `size` (H, W) where they have another (bilinear)."""
    if logits.dim() != 4:
        raise UsageError(f"class scores of shape {tuple(logits.shape)}; those of a map must be (B, classes, H, W)")
    if tuple(logits.shape[2:]) != tuple(size):
        logits = functional.interpolate(logits.float(), size=tuple(size), mode="bilinear", align_corners=False)
    return logits.movedim(1, -1)


@functools.lru_cache(maxsize=256)
def _accepted(forward) -> frozenset[str]:
    parameters = inspect.signature(forward).parameters.values()
    return frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))


def model_inputs(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a batch that the model's `forward` names, labels aside; empty when it names none of them."""
    accepted = _accepted(type(model).forward)
    return {name: value for name, value in batch.items() if name in accepted and name not in TARGETS}


def call(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    """Run a model on a batch: by keyword where its `forward` names the batch's keys, else its first entry by position.

    A `forward(features)` that takes the mapping itself (sentence-transformers) gets the mapping.
    """
    inputs = model_inputs(model, batch)
    if inputs:
        return model(**inputs)
    entries = {name: value for name, value in batch.items() if name not in TARGETS}
    if not entries:
        raise UsageError(f"the batch has no model inputs, only {sorted(batch)}")
    if (
        list(inspect.signature(type(model).forward).parameters)[1:2] in (["features"], ["input"])
        and "input_ids" in batch
    ):
        return model(dict(entries))
    return model(next(iter(entries.values())))


def match_paths(model: nn.Module, pattern: str) -> list[str]:
    """The module paths that a pattern with `*` names, in model order. Raises UsageError, with near names, for none."""
    paths = [path for path, _ in model.named_modules() if path]
    found = [path for path in paths if fnmatch.fnmatchcase(path, pattern)]
    if not found:
        raise UsageError(f"no module is named {pattern!r} in {type(model).__name__}. {did_you_mean(pattern, paths)}")
    return found


def _parameter(module: nn.Module, side: str) -> Tensor:
    """A module's parameter; a bias that is None is the zeros it stands for."""
    found = getattr(module, side)
    return found if found is not None else module.weight.new_zeros(len(module.weight))


class _Enough(Exception):
    """Ends a forward pass whose remainder nobody reads."""


class Tap:
    """Run a model and keep the named signals.

    with Tap(model, {"logits", "layer3"}) as tap:
        signals = tap(batch)

    Hooks exist only inside the `with` block and are removed whatever happens. An asterisk in a name captures every
    match, each under its own path. With `visit`, every module signal goes to visit(name, tensor) at each call of its
    module instead of being kept (a module that runs several times in one pass is seen every time); what holds no
    tensor is skipped.

    Who asks for a module's input and its weight, and not for the logits, applies that module himself: the pass ends
    before it, once everything else that was named is there. So an output projection onto a large vocabulary is never run.

    partial: a pass ends as soon as every named module has run once, so that what comes after the deepest of them costs nothing.
    Without effect where the logits are named; of a module that runs several times in one pass the first output is kept.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Iterable[str],
        visit: Callable[[str, Tensor], None] | None = None,
        partial: bool = False,
    ):
        self.model = model
        self.names = frozenset(names)
        self.partial = partial and LOGITS not in self.names
        self._visit = visit
        self._captured: dict[str, Tensor] = {}
        self._handles: list[Any] = []
        self._parameters: dict[str, tuple[nn.Module, str]] = {}
        self._awaited: set[str] = set()

    def __enter__(self) -> Tap:
        inner = sorted(self.names - {LOGITS})
        modules = dict(self.model.named_modules()) if inner else {}
        for name in inner:
            pattern, _, side = name.partition(":")
            if side not in ("", "input", "output", *PARAMETERS):
                self.__exit__()
                raise UsageError(
                    f"signal {name!r}: after the colon only 'input', 'output', 'weight' or 'bias' is allowed"
                )
            try:
                paths = match_paths(self.model, pattern)
            except UsageError:
                self.__exit__()  # a later name is wrong: take the earlier hooks off again
                raise
            for path in paths:
                key = path + (f":{side}" if side else "")
                if side in PARAMETERS:
                    if not hasattr(modules[path], side):
                        self.__exit__()
                        raise UsageError(f"signal {key!r}: {path} ({type(modules[path]).__name__}) has no {side}")
                    self._parameters[key] = (modules[path], side)
                    continue
                self._awaited.add(key)
                self._handles.append(self._hook(modules[path], key, side))
        return self

    def _hook(self, module: nn.Module, key: str, side: str):
        if side == "input":
            ends = LOGITS not in self.names and f"{key.removesuffix('input')}weight" in self.names

            def before(_, args, kwargs):
                self._keep(key, args if args else next(iter(kwargs.values())))
                if ends and self._captured.keys() >= self._awaited:
                    raise _Enough

            return module.register_forward_pre_hook(before, with_kwargs=True)

        def after(_, __, output):
            self._keep(key, output)

        return module.register_forward_hook(after)

    def _keep(self, key: str, value: Any) -> None:
        if self._visit is None:
            self._captured[key] = first_tensor(value)
            if self.partial and self._captured.keys() >= self._awaited:
                raise _Enough
            return
        try:
            tensor = first_tensor(value)
        except UsageError:
            return
        self._visit(key, tensor)

    def __call__(self, batch: Mapping[str, Any]) -> Signals:
        return self._signals(lambda: call(self.model, batch))

    def run(self, *args: Any, **kwargs: Any) -> Signals:
        """The signals of model(*args, **kwargs), for modules inside a model, which know no batches."""
        return self._signals(lambda: self.model(*args, **kwargs))

    def _signals(self, run: Callable[[], Any]) -> Signals:
        self._captured = {}
        try:
            output = run()
        except _Enough:
            output = None
        captured, self._captured = self._captured, {}
        captured |= {key: _parameter(*found) for key, found in self._parameters.items()}
        if LOGITS in self.names:
            captured[LOGITS] = first_tensor(output)
        return Signals(captured)

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._parameters, self._awaited = {}, set()


def capture(
    model: nn.Module, batch: Mapping[str, Any], names: Iterable[str] = (LOGITS,), partial: bool = False
) -> Signals:
    """One tapped forward pass."""
    with Tap(model, names, partial=partial) as tap:
        return tap(batch)


def _before(module: nn.Module, change: Callable[[Tensor], Tensor]):
    """Hook a change of the first input in front of a module; returns the handle."""

    def hook(_, args, kwargs):
        if args:
            return (change(args[0]), *args[1:]), kwargs
        first = next(iter(kwargs))
        return args, {**kwargs, first: change(kwargs[first])}

    return module.register_forward_pre_hook(hook, with_kwargs=True)


@contextlib.contextmanager
def injected(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """While the block lasts, the named modules return these tensors in place of what they compute; "PATH:input" reads one in place of its
    first input.

    with injected(model, {"blocks.1": hidden}), Tap(model, {"blocks.3"}) as tap:
        upper = tap(batch)["blocks.3"]

    So a forward pass is continued from a hidden state given from outside; the gradient reaches that state. Modules that
    return a tuple return it with its first entry replaced. A Tap that is entered before sees what the modules themselves computed, one
    that is entered after what was put there. Raises UsageError for an unknown path and a tensor of another shape.
    """
    modules, handles = dict(model.named_modules()), []
    try:
        for name, value in values.items():
            path, _, side = name.partition(":")
            if path not in modules or not path or side not in ("", "input"):
                raise UsageError(
                    f"no module is named {name!r} in {type(model).__name__}. {did_you_mean(path, modules)}"
                )

            def fitting(own, name=name, value=value):
                if own.shape != value.shape:
                    raise UsageError(
                        f"{name!r} is {tuple(own.shape)} and cannot be replaced by a tensor {tuple(value.shape)}"
                    )
                return value

            def replace(_, __, output, fitting=fitting):
                return (fitting(output[0]), *output[1:]) if isinstance(output, tuple) else fitting(output)

            module = modules[path]
            handles.append(_before(module, fitting) if side else module.register_forward_hook(replace))
        yield model
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def detached(model: nn.Module, patterns: Iterable[str]) -> Iterator[nn.Module]:
    """While the block lasts, no gradient flows back through the first input of the modules that the patterns name."""
    paths = dict.fromkeys(path for pattern in patterns for path in match_paths(model, pattern))
    handles = []
    try:
        for path in paths:
            handles.append(_before(model.get_submodule(path), Tensor.detach))
        yield model
    finally:
        for handle in handles:
            handle.remove()


def to_device(batch: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """The batch with its tensors on a device."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
