"""A frozen teacher's answers to a part of the training data, computed once for all arms and seeds that train on it."""

from __future__ import annotations

from typing import Any

from torch import nn

from limbeck.experiments.run import Run
from limbeck.files import digest, locked
from limbeck.teachers import CachedTeacher, FrozenTeacher, build_cache


def stored_answers(run: Run, task: Any, model: nn.Module, limit: int | None = None) -> CachedTeacher:
    """The teacher that reads a model's answers to `limit` training examples from the store, in float16, which are computed if nobody did before.

    Train with the same `limit` and without augmentation (`augment=False`), at any batch size and seed.
    """
    teacher = FrozenTeacher(model)
    name = digest({"teacher": teacher.digest(), "data": task.digest(), "limit": limit})
    folder = run.store.folder / f"answers-{name[:32]}"
    with locked(run.store.folder / f".answers-{name[:16]}.lock", None):
        return build_cache(teacher, task, folder, batch_size=64, augment=False, limit=limit, progress=False)
