"""The shared store: what was trained or computed once is found again by what decides it.

    <store>/papers/<digest>.safetensors      the tensors
    <store>/papers/<digest>.json             the key, the seconds it took, the digest of the tensors' file

The folder is `$LIMBECK_STORE`, else `~/.cache/limbeck/store`. Entries are written whole, checked when read, and locked while
they are made, so that two processes never train the same teacher.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limbeck.errors import ArtifactError, UsageError
from limbeck.files import digest, file_digest, locked, replacing, write_json
from limbeck.folders import store_folder


class Exchange(Protocol):
    """Where other machines look: entries travel by digest."""

    def get(self, name: str) -> bytes | None: ...
    def put(self, name: str, data: bytes) -> None: ...


class Store:
    """Trained modules and computed tensors by key. `used` lists, for the ledger, what was read or made: digest, seconds it
    took to make, and whether it was found (`hit`)."""

    def __init__(self, folder: Path | str | None = None, exchange: Exchange | None = None):
        self.folder = Path(folder) if folder is not None else store_folder() / "papers"
        self.exchange = exchange
        self.used: list[dict[str, Any]] = []
        self.seconds = 0.0  # spent here: reading, waiting for others, making
        self._depth = 0

    def tensors(self, key: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of `key`, made by `make()` when nobody did before.

        Raises UsageError for a key that is not JSON, ArtifactError for an entry that is damaged and cannot be made again.
        """
        try:
            name = digest(dict(key))
        except (TypeError, ValueError) as error:
            raise UsageError(f"a store key must hold JSON values only: {error}") from error
        begun = time.perf_counter()
        self._depth += 1
        try:
            with locked(self.folder / f".{name[:16]}.lock", None):
                found = self._read(name)
                if found is None and self.exchange is not None:
                    found = self._receive(name)
                return self._make(name, dict(key), make) if found is None else found
        finally:
            self._depth -= 1
            if self._depth == 0:
                self.seconds += time.perf_counter() - begun

    def module(
        self, key: Mapping[str, Any], make: Callable[[], nn.Module], train: Callable[[nn.Module], Any]
    ) -> nn.Module:
        """`make()` with the weights of `key`: trained by `train(module)`, in place, when they are not in the store."""
        module = make()

        def produce() -> dict[str, Tensor]:
            train(module)
            return module_tensors(module)

        load_module(module, self.tensors(key, produce))
        return module

    def _files(self, name: str) -> tuple[Path, Path]:
        return self.folder / f"{name}.safetensors", self.folder / f"{name}.json"

    def _read(self, name: str) -> dict[str, Tensor] | None:
        weights, about = self._files(name)
        if not (weights.exists() and about.exists()):
            return None
        try:
            facts = json.loads(about.read_text())
            if file_digest(weights) != facts["sha256"]:
                raise ArtifactError(f"{weights}: the checksum differs")
            tensors = load_file(weights)
        except (ValueError, KeyError, OSError, ArtifactError):
            return None  # damaged: made again, and replaced whole
        self.used.append({"digest": name, "hit": True, "seconds": facts["seconds"]})
        return tensors

    def _make(self, name: str, key: dict[str, Any], make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        begun = time.perf_counter()
        tensors = {k: v.detach().clone().contiguous().cpu() for k, v in make().items()}
        seconds = time.perf_counter() - begun
        weights, about = self._files(name)
        with replacing(weights) as temporary:
            save_file(tensors, temporary)
        write_json(about, {"key": key, "seconds": seconds, "sha256": file_digest(weights), "torch": torch.__version__})
        if self.exchange is not None:
            for path in (weights, about):
                self.exchange.put(path.name, path.read_bytes())
        self.used.append({"digest": name, "hit": False, "seconds": seconds})
        return tensors

    def _receive(self, name: str) -> dict[str, Tensor] | None:
        """Fetch an entry that another machine made; its checksum is verified like any other."""
        for path in self._files(name):
            data = self.exchange.get(path.name) if self.exchange is not None else None
            if data is None:
                return None
            with replacing(path) as temporary:
                temporary.write_bytes(data)
        return self._read(name)


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module with every shared tensor stored once, under its first name."""
    out: dict[str, Tensor] = {}
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, value in module.state_dict().items():
        mark = (value.data_ptr(), tuple(value.shape))
        if value.numel() and mark in seen:
            continue
        seen.add(mark)
        out[name] = value
    return out


def load_module(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load what `module_tensors` took, strictly: a missing or additional name is an ArtifactError."""
    wanted = module_tensors(module)
    if set(wanted) != set(tensors):
        odd = sorted(set(wanted) ^ set(tensors))[:5]
        raise ArtifactError(f"the stored weights do not fit the module: {', '.join(odd)} are on one side only")
    module.load_state_dict(dict(tensors), strict=False)
