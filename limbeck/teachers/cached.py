"""CachedTeacher: a teacher's answers, computed once and read from disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from limbeck.errors import ArtifactError, UsageError, did_you_mean
from limbeck.files import digest
from limbeck.signals import LOGITS, TOP_K, Signals
from limbeck.teachers import cache, compact
from limbeck.teachers.base import Teacher, Unchanging


def build_cache(
    teacher: Teacher,
    task: Any,
    folder: Path | str,
    *,
    passes: int = 1,
    seed: int = 0,
    batch_size: int = 128,
    augment: bool = True,
    limit: int | None = None,
    split: str = "train",
    top_k: int | None = None,
    temperature: float = 1.0,
    dtype: str = "float16",
    names: Iterable[str] = (),
    shard_rows: int = 16384,
    device: Any = "cpu",
    progress: bool = True,
) -> CachedTeacher:
    """Store a teacher's answers to exactly the batches that training will see, and return the teacher that reads them.

    passes: epochs of training, each with its own augmented views; without augmentation one pass serves every epoch. seed,
    batch_size, augment, limit: as training will hand them to `task.batches`. top_k: classes kept per answer (None: all); the
    probability of the others together is exact at `temperature`. dtype: "float16" or "float32". names: further signals
    to store (whole, so for small cases). A build that was interrupted goes on where it stopped; a complete one is reused.

    Raises UsageError for nonsense and for a teacher that changes, ArtifactError when the folder holds another cache.
    """
    _check_settings(passes=passes, batch_size=batch_size, shard_rows=shard_rows, top_k=top_k)
    if dtype not in compact.DTYPES:
        raise UsageError(f"build_cache: dtype={dtype!r} is unknown; allowed: {', '.join(compact.DTYPES)}")
    if not 0 < temperature < float("inf"):
        raise UsageError(f"build_cache: temperature={temperature!r} must be a positive finite number")
    if teacher.changes:
        raise UsageError(f"{type(teacher).__name__} changes while it teaches: its answers cannot be cached")
    views = _views(task, split, seed, batch_size, augment, limit)
    made_of = views | {
        "teacher": teacher.digest(),
        "passes": passes if views["seed"] is not None else 1,
        "batch_size": batch_size,
        "top_k": top_k,
        "temperature": float(temperature),
        "dtype": dtype,
        "names": sorted(set(names) - {LOGITS}),
    }
    cache.build(teacher, task, folder, made_of, shard_rows, device, progress)
    made = CachedTeacher(
        folder, task, teacher=teacher, seed=seed, batch_size=batch_size, augment=augment, limit=limit, split=split
    )
    made.to(device)
    return made


class CachedTeacher(Unchanging):
    """Answers from a cache that `build_cache` made: the batch's `index` (B,) and `epoch` say which.

    task, seed, batch_size, augment, limit, split: what training will use; passes: its epochs, when known. teacher: the
    teacher whose answers they should be, where it is at hand. A cache that was built for anything else is refused with an
    ArtifactError that names the difference, and so is one with a missing, damaged or changed file (`verify`).
    `bytes`, `samples`, `passes` and `bytes_per_sample` (bytes on disk per stored answer) say what it costs.
    """

    def __init__(
        self,
        folder: Path | str,
        task: Any,
        *,
        teacher: Teacher | None = None,
        seed: int = 0,
        batch_size: int = 128,
        augment: bool = True,
        limit: int | None = None,
        split: str = "train",
        passes: int | None = None,
        verify: bool = True,
    ):
        self.folder = Path(folder)
        self._manifest = cache.read(folder)
        self.made_of = self._manifest["made_of"]
        expected = _views(task, split, seed, batch_size, augment, limit)
        if teacher is not None:
            expected["teacher"] = teacher.digest()
        wrong = cache.differences(self.made_of, expected)
        if wrong:
            raise ArtifactError(f"the cache in {folder} does not fit: {wrong}. Build another one with build_cache.")
        if not self._manifest["complete"]:
            raise ArtifactError(
                f"the cache in {folder} is not complete: call build_cache again, it goes on where it stopped"
            )
        self.passes, self.samples = self.made_of["passes"], self._manifest["samples"]
        if passes is not None and self._augmented and passes > self.passes:
            raise ArtifactError(
                f"the cache in {folder} holds the views of {self.passes} epochs and training takes {passes}: build it with "
                f"passes={passes}"
            )
        if verify:
            for shard in self._manifest["shards"]:
                cache.check_shard(folder, shard)
        self.device: Any = "cpu"
        self._pass: _Pass | None = None

    @property
    def bytes(self) -> int:
        """Size of the shards on disk."""
        return sum(shard["bytes"] for shard in self._manifest["shards"])

    @property
    def bytes_per_sample(self) -> float:
        """Bytes on disk per stored answer."""
        return self.bytes / (self.samples * self.passes)

    @property
    def _augmented(self) -> bool:
        return self.made_of["seed"] is not None

    def signals(self, batch: Mapping[str, Any], names: frozenset[str]) -> Signals:
        """The stored answers. Raises UsageError for names that are not stored, for batches without `index` or `epoch`
        and for mixed inputs (mixup, cutmix), ArtifactError for an example or epoch that the cache does not hold."""
        unknown = sorted(names - {LOGITS, *TOP_K, *self.made_of["names"]})
        if unknown:
            known = [LOGITS, *self.made_of["names"]]
            raise UsageError(
                f"the cache in {self.folder} holds no signal {unknown[0]!r}. {did_you_mean(unknown[0], known)} "
                "Build it with names=(...)."
            )
        stored, rows = self._find(batch)
        if names & set(TOP_K) and f"{LOGITS}/classes" not in stored.keys:
            raise UsageError(f"the cache in {self.folder} keeps all classes, not the top k: build it with top_k=...")
        with torch.autocast(torch.device(self.device).type, enabled=False):  # stored types are no autocast types
            return self._read(stored, rows, batch, names)

    def _read(self, stored: _Pass, rows: Tensor, batch: Mapping[str, Any], names: frozenset[str]) -> Signals:
        tokens = batch.get("input_ids")
        length = tokens.shape[1] if isinstance(tokens, Tensor) and tokens.dim() == 2 else None

        def entry(name: str) -> Tensor:
            found = stored.gather(name, rows, self._manifest["sequences"])
            return (cache.fit_length(found, length) if name in self._manifest["sequences"] and length else found).to(
                self.device
            )

        found = {name: entry(f"signal/{name}").float() for name in names - {LOGITS, *TOP_K}}
        if names & {LOGITS, *TOP_K}:
            parts = {key.partition("/")[2]: entry(key) for key in stored.keys if key.startswith(f"{LOGITS}/")}
            if LOGITS in names:
                found[LOGITS] = compact.decode(parts, self._manifest["classes"])
            found |= {name: compact.part(parts, name.partition(":")[2]) for name in names & set(TOP_K)}
        return Signals(found)

    def _find(self, batch: Mapping[str, Any]) -> tuple[_Pass, Tensor]:
        index, epoch, labels = batch.get("index"), batch.get("epoch"), batch.get("labels")
        if not isinstance(index, Tensor):
            raise UsageError(f"a cached teacher needs batch['index'] (B,); the batch has {sorted(batch)}")
        if isinstance(labels, Tensor) and labels.is_floating_point() and blended(labels):
            raise UsageError(
                "mixup and cutmix blend examples, and a cache holds no blends: use the teacher itself, or no mixing"
            )
        if self._augmented and epoch is None:
            raise UsageError("this cache holds other views for every epoch: the batch must say which, batch['epoch']")
        number = int(epoch) if self._augmented else 0
        if not 0 <= number < self.passes:
            raise ArtifactError(
                f"the cache in {self.folder} holds the views of {self.passes} epochs; epoch {number} is asked for"
            )
        if self._pass is None or self._pass.number != number:
            self._pass = _Pass(self.folder, number, [s for s in self._manifest["shards"] if s["pass"] == number])
        return self._pass, self._pass.rows(index)

    def to(self, device: Any) -> None:
        self.device = device

    def digest(self) -> str:
        """Names the stored answers."""
        return digest({"kind": "cached", "made_of": self.made_of})


class _Pass:
    """The shards of one pass; tensors are mapped into memory, so that only the rows that are read are loaded."""

    def __init__(self, folder: Path, number: int, shards: list[Mapping[str, Any]]):
        self.number, self.folder = number, folder
        try:
            self.shards = [load_file(folder / shard["file"]) for shard in shards]
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"the cache in {folder} is damaged ({error}): delete it and build it again") from error
        self.keys = sorted(self.shards[0])
        self.starts = torch.tensor([0, *(shard["rows"] for shard in shards)]).cumsum(0)
        index = torch.cat([shard["index"] for shard in self.shards]).long()
        self.row_of = torch.full((int(index.max()) + 1,), -1)
        self.row_of[index] = torch.arange(len(index))

    def rows(self, index: Tensor) -> Tensor:
        """The row of each example. Raises ArtifactError for one that is not stored."""
        index = index.cpu().long()
        inside = (index >= 0) & (index < len(self.row_of))
        rows = self.row_of[index.where(inside, 0)].where(inside, -1)
        if bool((rows < 0).any()):
            raise ArtifactError(
                f"the cache in {self.folder} holds no answer for example {int(index[rows < 0][0])} in pass {self.number}"
            )
        return rows

    def gather(self, name: str, rows: Tensor, sequences: list[str]) -> Tensor:
        """The rows of one entry, sequences filled to the longest shard's length."""
        shard_of = torch.bucketize(rows, self.starts, right=True) - 1
        used = sorted(set(shard_of.tolist()))
        parts = [self.shards[shard][name][rows[shard_of == shard] - self.starts[shard]] for shard in used]
        if name in sequences:
            longest = max(part.shape[1] for part in parts)
            parts = [cache.fit_length(part, longest) for part in parts]
        if len(parts) == 1:
            return parts[0]
        order = torch.cat([(shard_of == shard).nonzero().squeeze(1) for shard in used])
        return torch.cat(parts)[order.argsort()]


def blended(labels: Tensor) -> bool:
    """Whether label probabilities (B, C) come from mixed examples: label smoothing alone leaves one peak of one height."""
    if labels.dim() != 2 or labels.shape[1] < 2:
        return False
    ordered = labels.detach().sort(dim=1, descending=True).values
    flat = bool((ordered[:, 1] - ordered[:, -1] < 1e-6).all())
    return not flat or bool(ordered[:, 0].max() - ordered[:, 0].min() > 1e-6)


def _views(task: Any, split: str, seed: int, batch_size: int, augment: bool, limit: int | None) -> dict[str, Any]:
    """What decides which inputs the teacher sees; without augmentation neither the seed nor the batch size does."""
    augmentation = getattr(task, "augmentation", "none") if augment else "none"
    views = {"data": task.digest(), "split": split, "augmentation": augmentation, "limit": limit}
    if augmentation == "none":
        return views | {"seed": None}
    return views | {"seed": seed, "batch_size": batch_size}


def _check_settings(**settings: int | None) -> None:
    for name, value in settings.items():
        if (value is None and name == "top_k") or (
            isinstance(value, int) and not isinstance(value, bool) and value >= 1
        ):
            continue
        raise UsageError(f"build_cache: {name}={value!r} must be a whole number of at least 1")
