"""Checkpoints: folders of safetensors and JSON that are whole or absent, checksummed, and tied to what was trained.

    FOLDER/step-00000100/tensors.safetensors   modules, optimizers, averages, by slash-separated names
    FOLDER/step-00000100/state.json            step, history, identity, digests of both files

Each is written under a temporary name, flushed and renamed into place; the newest two are kept. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from limbeck.errors import ArtifactError, LimbeckError, UsageError
from limbeck.files import digest, file_digest

FORMAT = 1
KEPT = 2
_TENSORS, _STATE = "tensors.safetensors", "state.json"


class Checkpoints:
    """The checkpoints of one run in one folder."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)

    def steps(self) -> list[int]:
        """Steps of which a checkpoint exists, oldest first."""
        found = self.folder.glob("step-*") if self.folder.is_dir() else ()
        return sorted(int(path.name[5:]) for path in found if path.name[5:].isdigit())

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint whole or not at all; older ones beyond the newest two are then removed.

        Raises LimbeckError when the folder cannot be written or the disk is full; earlier checkpoints stay as they were.
        """
        target = self.path(step)
        with self._writing(target) as temporary:
            save_file(_plain(tensors), temporary / _TENSORS)
            body = {"format": FORMAT, "step": step, **state, "tensors_digest": file_digest(temporary / _TENSORS)}
            text = json.dumps({"digest": digest(body), "body": body}, ensure_ascii=False, allow_nan=False)
            (temporary / _STATE).write_text(text, encoding="utf-8")
        for old in self.steps()[:-KEPT]:
            shutil.rmtree(self.path(old), ignore_errors=True)
        return target

    @contextlib.contextmanager
    def _writing(self, target: Path) -> Iterator[Path]:
        temporary = target.with_name(f".{target.name}-{os.getpid()}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".step-*.tmp"):  # of a killed run
                shutil.rmtree(left, ignore_errors=True)
            temporary.mkdir()
            yield temporary
            for name in (_TENSORS, _STATE):
                _flush(temporary / name)
            _flush(temporary)
            if target.exists():
                shutil.rmtree(target)
            os.replace(temporary, target)
            _flush(self.folder)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise LimbeckError(
                f"cannot write the checkpoint {target}: {reason}. Earlier checkpoints are untouched: make room or "
                "choose another folder, and start the same run again"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def read(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and state of one checkpoint. Raises ArtifactError when it is damaged or from a newer version."""
        path = self.path(step)
        try:
            document = json.loads((path / _STATE).read_text(encoding="utf-8"))
            body = document["body"]
            if digest(body) != document["digest"]:
                raise ArtifactError(f"{path / _STATE} is damaged: its checksum does not fit")
            if body["format"] > FORMAT:
                raise ArtifactError(
                    f"{path} has format {body['format']}; this Limbeck reads {FORMAT}. Install a newer one"
                )
            if file_digest(path / _TENSORS) != body["tensors_digest"]:
                raise ArtifactError(f"{path / _TENSORS} is damaged: its checksum does not fit")
            return load_file(path / _TENSORS), body
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ArtifactError(f"the checkpoint {path} is damaged or incomplete: {error}") from error

    def latest(self, identity: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint that is whole, or None when there is none at all.

        A damaged one is passed over with a warning. Raises ArtifactError when all are damaged, UsageError when the
        checkpoint is of another run, naming what differs.
        """
        problems = []
        for step in reversed(self.steps()):
            try:
                tensors, state = self.read(step)
            except ArtifactError as error:
                problems.append(str(error))
                continue
            found = differences(state["identity"], identity)
            if found:
                raise UsageError(
                    f"{self.folder} holds checkpoints of another run: {'; '.join(found)}. "
                    "Choose another folder, or delete this one to start afresh"
                )
            for problem in problems:
                warnings.warn(f"{problem}. Going on from step {step} instead", stacklevel=2)
            return tensors, state
        if problems:
            raise ArtifactError(
                f"no checkpoint can be read: {'; '.join(problems)}. Delete {self.folder} to start afresh"
            )
        return None


def differences(stored: Any, current: Any, name: str = "") -> list[str]:
    """Where two JSON values differ, as sentences such as "config.learning_rate was 0.1 and is 0.05"."""
    if isinstance(stored, Mapping) and isinstance(current, Mapping):
        found = []
        for key in [*stored, *(key for key in current if key not in stored)]:
            path = f"{name}.{key}" if name else str(key)
            found += differences(stored.get(key), current.get(key), path)
        return found
    if isinstance(stored, (list, tuple)) and isinstance(current, (list, tuple)):
        stored, current = list(stored), list(current)
    return [] if stored == current else [f"{name} was {_short(stored)} and is {_short(current)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU, none of which share memory (tied weights are stored once per name)."""
    seen: set[int] = set()
    plain = {}
    for name, tensor in tensors.items():
        value = tensor.detach().to("cpu").contiguous()
        if value.data_ptr() in seen or value.untyped_storage().nbytes() != value.nbytes:
            value = value.clone()
        seen.add(value.data_ptr())
        plain[name] = value
    return plain


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors by "INDEX/NAME" and JSON for what is not a tensor. Rates and decays are the config's."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            (tensors if isinstance(value, Tensor) else values)[f"{index}/{name}"] = value
    return tensors, values


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Put back what `flatten_optimizer` took out, in the memory order of each parameter."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *values.items()]:
        index, _, name = key.partition("/")
        parameter = parameters[int(index)]
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        elif isinstance(value, Tensor):
            value = value.clone()
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def module_tensors(modules: Mapping[str, torch.nn.Module]) -> dict[str, Tensor]:
    """Everything in the modules' state, by "MODULE/NAME". Raises UsageError for state that is not a tensor."""
    tensors = {}
    for name, module in modules.items():
        for key, value in module.state_dict().items():
            if not isinstance(value, Tensor):
                raise UsageError(
                    f"module {name!r} keeps {key!r}, a {type(value).__name__}, in its state: checkpoints hold tensors only, "
                    "make it a buffer"
                )
            tensors[f"{name}/{key}"] = value
    return tensors


def restore_modules(modules: Mapping[str, torch.nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Copy stored tensors into the modules; names and shapes must agree exactly."""
    for name, module in modules.items():
        prefix = f"{name}/"
        module.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}, strict=True)


def select(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under "PREFIX/", without it."""
    return {key[len(prefix) + 1 :]: value for key, value in tensors.items() if key.startswith(prefix + "/")}
