"""Calibration segment by segment: every segment sees the inputs that the quantized segments before it give.

A model is walked as a list of segments, found by running one batch and without tracing:

    a block      one member of a chain of blocks that hand a hidden state from each to the next, see `chains`
    the rest     chosen modules outside all chains, between one chain and the next (patch embedding, head)

A chain's first inputs are captured once; then only hidden states travel. A block is worked on in a copy, which is dropped when
the next one begins: beside the model itself memory holds one block, the hidden states of the calibration batches, and whatever
the method keeps. Extra arguments of a block (masks, rotary tables) are those that the model passed to that very block.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import DataError
from limbeck.memory import give_back
from limbeck.pruning.importance import unchanged
from limbeck.quantization.chains import Call, Chain, order
from limbeck.quantization.hessian import write_matrix
from limbeck.signals import call, first_tensor, to_device

See = Callable[[str, Tensor, "Tensor | None"], None]


class _Enough(Exception):
    """Ends a pass whose remainder nobody reads."""


class Segment:
    """A part of the model that is quantized at once.

    path     of the block in the model, or None for the rest
    paths    of the modules to quantize, as in the model
    block    the module that runs: a copy of the block, or the model
    calls, hidden    for a block: its calls and its hidden inputs, one per batch
    """

    def __init__(self, path: str | None, paths: list[str], block: nn.Module, runs: Sequence[Callable[[], Any]], masks):
        self.path, self.paths, self.block = path, paths, block
        self._runs, self._masks = runs, masks
        self.calls: list[Call] = []
        self.hidden: list[Tensor] = []
        self.targets: list[Tensor] | None = None
        self.replaced: dict[str, Tensor] = {}
        self.changed: dict[str, Tensor] = {}

    def module(self, path: str) -> nn.Module:
        """The module at a path of the model, inside this segment."""
        return self.block.get_submodule(path if self.path is None else path[len(self.path) + 1 :])

    def write(self, path: str, weight: Tensor) -> None:
        """Give a module another weight (out, n) for what follows."""
        module = self.module(path)
        if self.path is None:
            self.replaced.setdefault(path, module.weight.detach().clone())
        write_matrix(module, weight)

    def change(self, name: str, value: Tensor) -> None:
        """Give a parameter of the block that is not quantized (of a norm) another value; `changed` has it by its name in the model."""
        with torch.no_grad():
            self.block.get_parameter(name).copy_(value)
        self.changed[f"{self.path}.{name}"] = value

    def release(self) -> None:
        """Give up the block and what runs through it; what was changed stays."""
        self.block, self._runs, self._masks, self.calls, self.hidden, self.targets = None, [], [], [], [], None

    def visit(self, paths: Iterable[str], see: See, batches: int | None = None) -> None:
        """Run the segment on every batch; see(path, x, mask) with the input of each of these modules at each of its calls."""
        waiting: set[str] = set()
        wanted = list(paths)
        mask: Tensor | None = None

        def hook(path: str):
            def before(_, args, kwargs):
                see(path, args[0] if args else next(iter(kwargs.values())), mask)
                waiting.discard(path)
                if not waiting and self._once:
                    raise _Enough

            return before

        handles = [self.module(p).register_forward_pre_hook(hook(p), with_kwargs=True) for p in wanted]
        try:
            with torch.no_grad():
                for number, run in enumerate(self._runs[:batches]):
                    waiting, mask = set(wanted), self._masks[number]
                    with contextlib.suppress(_Enough):
                        run()
        finally:
            for handle in handles:
                handle.remove()

    _once = False

    def stages(self) -> list[list[str]]:
        """The paths in the order in which they run; those that read the very same tensor (queries, keys and values) together.

        Modules that one batch did not reach (experts) come last, together.
        """
        groups: list[list[str]] = []
        calls: list[str] = []
        last: list[Tensor] = []  # what the newest of them read; no other input is kept
        done: set[str] = set()

        def see(path: str, x: Tensor, mask: Tensor | None) -> None:
            calls.append(path)
            if path not in done:
                groups[-1].append(path) if last and x is last[0] else groups.append([path])
                done.add(path)
                last[:] = [x]

        self._once = False
        self.visit(self.paths, see, batches=1)
        unreached = [path for path in self.paths if path not in done]
        # a pass may end early where every module runs once in it and all of them were seen
        self._once = len(calls) == len(done) and not unreached
        return groups + [unreached] * bool(unreached)


def mask_of(batch: Mapping[str, Any]) -> Tensor | None:
    """Which positions (B, L) of a batch count; None: all."""
    found = batch.get("attention_mask")
    return found.bool() if isinstance(found, Tensor) and found.dim() == 2 else None


def segments(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    paths: Sequence[str],
    targets: bool = False,
    fetch: Callable[[str], nn.Module] | None = None,
) -> Iterator[Segment]:
    """The segments of a model in the order in which they run; whoever iterates changes their weights through `Segment.write`.

    batches: of the calibration data. paths: of the modules to quantize; modules that never run are in no segment.
    targets: also give every block's output in the float model on float inputs (`Segment.targets`), at the price of running each
    block once more. fetch: path of a block -> a copy of it with its weights; by default a copy of the model's own.

    The model is left as it was found, also when the iteration ends early. Raises DataError without a batch.
    """
    device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
    held = [to_device(batch, device) for batch in batches]
    if not held:
        raise DataError("the train split gave no batch to calibrate with")
    fetch = fetch or (lambda path: copy.deepcopy(model.get_submodule(path)))
    masks = [mask_of(batch) for batch in held]
    originals: dict[str, Tensor] = {}
    with unchanged(model):
        done: list[Chain] = []
        try:
            for part in order(model, held[0], paths):
                if isinstance(part, list):
                    yield from _rest(model, held, masks, part, done, originals)
                else:
                    _capture(model, held, masks, part, done)
                    if targets:
                        with _restored(model, originals):
                            _capture(model, held, masks, part, done, reference=True)
                    yield from _blocks(part, paths, targets, fetch)
                    done.append(part)
        finally:
            for path, weight in originals.items():
                with torch.no_grad():
                    model.get_submodule(path).weight.copy_(weight)


def _rest(model, batches, masks, paths, done, originals) -> Iterator[Segment]:
    def run(index: int):
        with _answered(model, done, index):
            return call(model, batches[index])

    runs = [lambda index=index: run(index) for index in range(len(batches))]
    segment = Segment(None, list(paths), model, runs, masks)
    try:
        yield segment
    finally:
        originals.update(segment.replaced)


def _blocks(chain: Chain, paths: Sequence[str], targets: bool, fetch) -> Iterator[Segment]:
    for number, member in enumerate(chain.members):
        last = number == len(chain.members) - 1
        block = fetch(member).eval()
        calls = [row[number] for row in chain.calls]
        if targets:
            expected = [row[number] for row in chain.reference_calls]
            chain.final_reference = _advance(block, expected, chain.reference, last)
        runs = [lambda c=c, x=x, block=block: c.run(block, x) for c, x in zip(calls, chain.hidden)]
        inside = [path for path in paths if path.startswith(f"{member}.")]
        segment = Segment(member, inside, block, runs, [c.mask for c in calls])
        del runs
        segment.calls, segment.hidden = calls, list(chain.hidden)
        segment.targets = list(chain.reference) if targets else None
        if inside:
            yield segment
        segment.release()  # whoever iterates still holds it when the next block is there
        chain.final = _advance(block, calls, chain.hidden, last)
        del segment, block
        give_back()
    chain.calls, chain.reference_calls, chain.hidden, chain.reference = [], [], [], []


@torch.no_grad()
def _advance(block: nn.Module, calls: Sequence[Call], hidden: list[Tensor], last: bool) -> list[Any]:
    """Put the block's outputs in the place of its inputs, one batch after another; all that it returns, where it is the last one."""
    whole = []
    for index, made in enumerate(calls):
        output = made.run(block, hidden[index])
        hidden[index] = first_tensor(output)
        if last:
            whole.append(output)
    return whole


@contextlib.contextmanager
def _instead(model: nn.Module, forwards: Mapping[str, Callable]) -> Iterator[None]:
    """While the block lasts, calling these modules runs these functions, and nothing of what they would compute."""
    modules = {path: model.get_submodule(path) for path in forwards}
    own = {path: module.__dict__.get("forward") for path, module in modules.items()}
    try:
        for path, module in modules.items():
            module.__dict__["forward"] = forwards[path]
        yield
    finally:
        for path, module in modules.items():
            if own[path] is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own[path]


def _answered(model: nn.Module, done: Sequence[Chain], index: int, reference: bool = False):
    """Chains that were walked answer with what their last member returned for this batch; the others in them with their input."""

    def forwards() -> dict[str, Callable]:
        found: dict[str, Callable] = {}
        for chain in done:
            final = (chain.final_reference if reference else chain.final)[index]
            for member in chain.members:
                found[member] = lambda *args, final=final, **kwargs: final
        return found

    return _instead(model, forwards())


def _capture(model, batches, masks, chain: Chain, done, reference: bool = False) -> None:
    """Record the chain's first hidden states and every member's other arguments. Only the first member is really run: what it
    returns beside the hidden state (position biases) is handed on by all."""
    hidden: list[Tensor] = []
    calls: list[list[Call]] = []
    first = model.get_submodule(chain.members[0])
    computed = first.forward

    last = len(chain.members) - 1

    def recorded(position: int, row: list[Call], answer: list[Any], mask: Tensor | None):
        def forward(*args, **kwargs):
            made, x = Call.of(args, kwargs, mask)
            row.append(made)
            if position == 0:
                hidden.append(x.detach())
                answer.append(made.run(computed, x))
            if position == last:
                raise _Enough
            return answer[0]

        return forward

    for index, batch in enumerate(batches):
        row: list[Call] = []
        answer: list[Any] = []
        forwards = {
            member: recorded(position, row, answer, masks[index]) for position, member in enumerate(chain.members)
        }
        with (
            torch.no_grad(),
            _answered(model, done, index, reference),
            _instead(model, forwards),
            contextlib.suppress(_Enough),
        ):
            call(model, batch)
        calls.append(row)
    if reference:
        chain.reference, chain.reference_calls = hidden, calls
    else:
        chain.hidden, chain.calls = hidden, calls


@contextlib.contextmanager
def _restored(model: nn.Module, originals: Mapping[str, Tensor]) -> Iterator[None]:
    """The float weights of the modules outside all chains, for the time of the block."""
    changed = {path: model.get_submodule(path).weight.detach().clone() for path in originals}
    with torch.no_grad():
        for path, weight in originals.items():
            model.get_submodule(path).weight.copy_(weight)
        try:
            yield
        finally:
            for path, weight in changed.items():
                model.get_submodule(path).weight.copy_(weight)
