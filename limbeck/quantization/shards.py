"""Models larger than memory: blocks are read from safetensors files when they are due, and dropped after.

    model = empty(lambda: LlamaForCausalLM(config))          parameters without data
    for path, packed in round_shards(model, Shards(folder), batches, quantizers, GPTQ()):
        ...                                                  write it

Resident are what lies outside the chains of blocks (embeddings, head), one block, and the hidden states of the calibration
batches.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from limbeck.errors import ArtifactError, UsageError
from limbeck.quantization.chains import containers
from limbeck.quantization.contract import Packed
from limbeck.quantization.grids import Quantizer
from limbeck.quantization.rounding import Rounding
from limbeck.quantization.streaming import segments

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


class Shards:
    """The tensors of a folder with one safetensors file or several and their index, by name. Raises ArtifactError for a folder without
    them, a damaged index or file, and a name that is not there."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        try:
            if (self.folder / INDEX).exists():
                self.files = dict(json.loads((self.folder / INDEX).read_text())["weight_map"])
            else:
                with self._open(SINGLE) as file:
                    self.files = dict.fromkeys(file.keys(), SINGLE)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{self.folder} holds no readable {SINGLE} or {INDEX}: {error}") from error
        for name in set(self.files.values()):
            if not isinstance(name, str) or Path(name).name != name:
                raise ArtifactError(f"{self.folder / INDEX} names the file {name!r}, which is not in the folder itself")

    def _open(self, name: str):
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(str(self.folder / name), framework="pt")
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{self.folder / name} cannot be read: {error}") from error

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """These tensors; every file is opened once."""
        by_file: dict[str, list[str]] = {}
        for name in names:
            if name not in self.files:
                raise ArtifactError(f"{self.folder} has no tensor {name!r}")
            by_file.setdefault(self.files[name], []).append(name)
        found = {}
        for file, wanted in by_file.items():
            with self._open(file) as opened:
                found |= {name: opened.get_tensor(name) for name in wanted}
        return found


def empty(make: Callable[[], nn.Module]) -> nn.Module:
    """The module that `make` builds, its parameters without data, one at a time; ties between parameters stay. Buffers have their data."""
    register = nn.Module.register_parameter

    def hollow(self, name, parameter):
        register(self, name, parameter)
        if parameter is not None and not parameter.is_meta:
            self._parameters[name] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    nn.Module.register_parameter = hollow
    try:
        return make().eval()
    finally:
        nn.Module.register_parameter = register


def fill(module: nn.Module, prefix: str, shards: Shards, skip: tuple[str, ...] = ()) -> None:
    """Read the parameters of a module that have no data, named PREFIX + their name in the files; names that begin with one of `skip` stay
    empty. Parameters that are tied read the name that is there. Raises ArtifactError for one that is missing or of another shape."""
    owners: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.is_meta and not name.startswith(skip):
            owners.setdefault(id(parameter), []).append(name)
    names = [next((n for n in tied if prefix + n in shards.files), tied[0]) for tied in owners.values()]
    values = shards.read(prefix + name for name in names)
    for name, tied in zip(names, owners.values()):
        value, expected = values[prefix + name], module.get_parameter(name)
        if value.shape != expected.shape:
            raise ArtifactError(
                f"{prefix + name} has the shape {tuple(value.shape)}, the model {tuple(expected.shape)}"
            )
        made = nn.Parameter(value.to(expected.dtype), requires_grad=False)
        for other in tied:
            owner, _, last = other.rpartition(".")
            module.get_submodule(owner).register_parameter(last, made)


@contextlib.contextmanager
def read_when_called(model: nn.Module, paths: Iterable[str], shards: Shards) -> Iterator[Callable[[str], nn.Module]]:
    """While the block lasts, calling one of these blocks runs a copy with its weights, which is dropped after the call. Yields the
    function path -> such a copy."""
    blocks = {path: model.get_submodule(path) for path in paths}
    blank = {path: copy.deepcopy(module) for path, module in blocks.items()}  # without data they take no memory

    def fetch(path: str) -> nn.Module:
        block = copy.deepcopy(blank[path])
        fill(block, f"{path}.", shards)
        return block

    def run(path: str, *args, **kwargs):
        return fetch(path)(*args, **kwargs)

    try:
        for path, module in blocks.items():
            module.__dict__["forward"] = functools.partial(run, path)
        yield fetch
    finally:
        for module in blocks.values():
            module.__dict__.pop("forward", None)


def round_shards(
    model: nn.Module,
    shards: Shards,
    batches: Iterable[Mapping[str, Any]],
    quantizers: Mapping[str, Quantizer],
    rounding: Rounding,
    changed: dict[str, Tensor] | None = None,
) -> Iterator[tuple[str, Packed]]:
    """(path, packed weight) of every module named in `quantizers` that a batch reaches, as they are found.

    model: from `empty`; what lies outside its lists of blocks is read now and stays. changed: takes new values of other parameters, by name,
    where the method tunes those. The rest as in `round_weights`. Raises UsageError for a
    method that reads no data: it needs no model, only the tensors.
    """
    if not rounding.reads_data:
        raise UsageError(
            f"{type(rounding).__name__} reads no data: apply it to the tensors of {shards.folder} one by one"
        )
    members = [member for found in containers(model, list(quantizers)).values() for member in found]
    outer = [m for m in members if not any(m.startswith(f"{o}.") for o in members)]
    with read_when_called(model, outer, shards) as fetch:
        fill(model, "", shards, tuple(f"{m}." for m in outer))
        for segment in segments(model, batches, list(quantizers), rounding.targets, fetch):
            unread = [path for path in segment.paths if segment.module(path).weight.is_meta]
            if unread:
                raise UsageError(
                    f"{unread[0]} is in a list whose members do not hand on a hidden state: read the model as a whole"
                )
            found = rounding.solve(segment, quantizers)
            if changed is not None:
                changed |= segment.changed
            yield from found.items()
