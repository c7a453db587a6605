"""The cache folder: `cache.json` and shards of compact answers, each with its checksum.

    cache.json                      what the answers are made of, the shards and their SHA-256, its own digest
    pass-000-00000.safetensors      index (N,) and the entries of N answers, in the order of training
    ...

A row is found by (pass, index): in augmented training every epoch shows other views of the examples, so one pass holds one
epoch. A shard is written whole or not at all and entered in `cache.json` afterwards; a build that was killed goes on after
its last entered shard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from limbeck.errors import ArtifactError, DataError, LimbeckError, UsageError
from limbeck.files import digest, file_digest, write_bytes, write_json
from limbeck.progress import bar
from limbeck.signals import LOGITS, to_device
from limbeck.teachers import compact
from limbeck.teachers.base import Teacher

FORMAT = 1
MANIFEST = "cache.json"


def build(
    teacher: Teacher,
    task: Any,
    folder: Path | str,
    made_of: Mapping[str, Any],
    shard_rows: int,
    device: Any,
    progress: bool,
) -> None:
    """Fill a cache folder, or finish one that was begun with the same `made_of`; a complete one is left as it is.

    Raises ArtifactError when the folder holds another cache, DataError when the split is empty.
    """
    folder = Path(folder)
    manifest = _begun(folder, made_of) or {"format": FORMAT, "made_of": dict(made_of), "complete": False, "shards": []}
    if manifest["complete"]:
        return
    size = task.size(made_of["split"])
    size = size if made_of["limit"] is None else min(size, made_of["limit"])
    if not size:
        raise DataError(f"split {made_of['split']!r} is empty: there is nothing to cache")
    manifest["samples"] = size
    teacher.to(device)
    done = sum(shard["rows"] for shard in manifest["shards"])
    with bar("caching the teacher", total=size * made_of["passes"], show=progress) as shown:
        for number in range(made_of["passes"]):
            while rows := _next_shard(teacher, task, manifest, number, shard_rows, device):
                _write_shard(folder, manifest, number, rows)
                done += len(rows["index"])
                shown.update(done, f"pass {number + 1} of {made_of['passes']}")
    manifest["complete"] = True
    _write(folder, manifest)


def _next_shard(teacher, task, manifest, number: int, shard_rows: int, device) -> dict[str, Tensor] | None:
    """The answers of the next batches of a pass, at least `shard_rows` of them; None when the pass is complete."""
    made_of = manifest["made_of"]
    finished = [shard for shard in manifest["shards"] if shard["pass"] == number]
    if sum(shard["rows"] for shard in finished) >= manifest["samples"]:
        return None
    batches = task.batches(
        made_of["split"],
        made_of["batch_size"],
        seed=made_of["seed"],
        epoch=number,
        augment=made_of["seed"] is not None,
        limit=made_of["limit"],
        skip=sum(shard["batches"] for shard in finished),
    )
    answers, count = [], 0
    for batch in batches:
        answers.append(_answer(teacher, to_device(batch, device), manifest))
        count += len(answers[-1]["index"])
        if count >= shard_rows:
            break
    if not answers:
        raise DataError(f"pass {number} ended early: the task's size({made_of['split']!r}) and its batches disagree")
    return _joined(answers, manifest) | {"batches": torch.tensor(len(answers))}


def _answer(teacher: Teacher, batch: Mapping[str, Any], manifest: dict[str, Any]) -> dict[str, Tensor]:
    made_of = manifest["made_of"]
    if not isinstance(batch.get("index"), Tensor):
        raise UsageError(
            "the task's batches have no 'index' (B,): a cache needs the position of each example in its split"
        )
    signals = teacher.signals(batch, frozenset({LOGITS, *made_of["names"]}))
    logits = signals.logits
    if bool((logits.isnan() | (logits == torch.inf)).any()):
        raise LimbeckError(
            "the teacher's outputs are not finite: there is nothing to learn from them. Check the teacher."
        )
    entries = compact.encode(logits, made_of["top_k"], made_of["temperature"], made_of["dtype"])
    out = {f"{LOGITS}/{name}": value.cpu() for name, value in entries.items()}
    for name in made_of["names"]:
        out[f"signal/{name}"] = compact.encode_feature(name, signals[name], made_of["dtype"]).cpu()
    known = {"classes": logits.shape[-1], "sequences": sorted(n for n, v in out.items() if is_sequence(v, batch))}
    if any(manifest.setdefault(name, value) != value for name, value in known.items()):
        raise UsageError("the teacher's outputs change their form between batches: they cannot be cached")
    return out | {"index": batch["index"].to("cpu", torch.int32)}


def is_sequence(value: Tensor, batch: Mapping[str, Any]) -> bool:
    """Whether the second axis is the tokens of the batch."""
    tokens = batch.get("input_ids")
    return isinstance(tokens, Tensor) and value.dim() >= 3 and value.shape[:2] == tokens.shape[:2]


def fit_length(value: Tensor, length: int) -> Tensor:
    """A sequence (B, L, ...) cut or filled with zeros, at its end, to another length."""
    missing = length - value.shape[1]
    if missing <= 0:
        return value[:, :length]
    return torch.cat([value, value.new_zeros(value.shape[0], missing, *value.shape[2:])], dim=1)


def _joined(answers: list[dict[str, Tensor]], manifest: dict[str, Any]) -> dict[str, Tensor]:
    out = {}
    for name in answers[0]:
        parts = [answer[name] for answer in answers]
        if name in manifest["sequences"]:
            longest = max(part.shape[1] for part in parts)
            parts = [fit_length(part, longest) for part in parts]
        out[name] = torch.cat(parts).contiguous()
    return out


def _write_shard(folder: Path, manifest: dict[str, Any], number: int, rows: dict[str, Tensor]) -> None:
    before = sum(1 for shard in manifest["shards"] if shard["pass"] == number)
    name, batches = f"pass-{number:03d}-{before:05d}.safetensors", int(rows.pop("batches"))
    data = save(rows)
    write_bytes(folder / name, data)
    entry = {"file": name, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest["shards"].append(entry | {"pass": number, "rows": len(rows["index"]), "batches": batches})
    _write(folder, manifest)


def _write(folder: Path, manifest: dict[str, Any]) -> None:
    manifest.pop("digest", None)
    write_json(folder / MANIFEST, manifest | {"digest": digest(manifest)})


def read(folder: Path | str) -> dict[str, Any]:
    """The manifest of a cache. Raises ArtifactError when there is none, or it is damaged, changed or newer."""
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(
            f"{path.parent} holds no teacher's cache ({MANIFEST} is missing): make one with build_cache"
        ) from None
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} cannot be read ({error}): delete {path.parent} and build the cache again"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise ArtifactError(f"{path} has the format {found!r}; this Limbeck reads {FORMAT}")
    if manifest.pop("digest", None) != digest(manifest):
        raise ArtifactError(f"{path} is damaged or was changed: delete {path.parent} and build the cache again")
    return manifest


def check_shard(folder: Path | str, shard: Mapping[str, Any]) -> None:
    """Raises ArtifactError when a shard is missing or its bytes are not the ones that were written."""
    path = Path(folder) / shard["file"]
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: delete {path.parent} and build the cache again")
    if path.stat().st_size != shard["bytes"] or file_digest(path) != shard["sha256"]:
        raise ArtifactError(f"{path} is damaged (its checksum differs): delete {path.parent} and build the cache again")


def differences(made_of: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """What of `expected` a cache was not made of, in words; empty when it fits."""
    wrong = [name for name, value in expected.items() if made_of.get(name) != value]
    return "; ".join(f"{name} is {made_of.get(name)!r} in the cache and {expected[name]!r} here" for name in wrong)


def _begun(folder: Path, made_of: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest of an earlier build of the same cache, up to its last shard that is whole."""
    if not (folder / MANIFEST).exists():
        return None
    manifest = read(folder)
    wrong = differences(manifest["made_of"], made_of)
    if wrong:
        raise ArtifactError(f"{folder} holds another cache: {wrong}. Choose another folder, or delete it.")
    for position, shard in enumerate(manifest["shards"]):
        try:
            check_shard(folder, shard)
        except ArtifactError:
            manifest["shards"], manifest["complete"] = manifest["shards"][:position], False
            break
    for stale in folder.glob(".*.tmp"):
        stale.unlink(missing_ok=True)
    return manifest
