"""What an arm is given: seed, split, a folder, the Trainer with its costs counted, and the shared store of trained things."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.experiments.store import Store
from limbeck.training.config import TrainingConfig
from limbeck.training.history import History
from limbeck.training.procedures import Procedure
from limbeck.training.randomness import derived_seed, restored_generators, seed_everything
from limbeck.training.trainer import Trainer


class Run:
    """One (arm, seed) of a miniature.

    seed: of this run; every random choice follows from it. split: what to measure on: "test" for the verdict, "validation"
    while settings are chosen; an arm never names a split itself. costs: what was spent, by name; `train` adds `steps` and
    `samples`, an arm adds its own by `record`.
    """

    def __init__(self, seed: int, split: str = "test", store: Store | None = None, folder: Path | str | None = None):
        if split not in ("test", "validation"):
            raise UsageError(f"split={split!r}: 'test' for the verdict, 'validation' to choose settings")
        self.seed, self.split = seed, split
        self.store = store if store is not None else Store()
        self.folder = Path(folder) if folder is not None else None
        self.costs: dict[str, float] = {}
        self.notes: list[str] = []

    def train(
        self, procedure: Procedure, task: Any, config: TrainingConfig, *, seed: int | None = None, counted: bool = True
    ) -> History:
        """Train with the one Trainer; steps and samples are added to the costs unless `counted` is False (for what every arm
        shares, such as a teacher)."""
        history = Trainer(config, folder=None, seed=self.seed if seed is None else seed, progress=False).run(
            procedure, task
        )
        if counted:
            self.record(steps=history.steps[-1]["step"], samples=history.samples)
        return history

    def record(self, **costs: float) -> None:
        """Add to the costs: numbers by name (`parameters`, `bytes`, `seconds` ...). Costs of the same name are summed."""
        for name, value in costs.items():
            self.costs[name] = self.costs.get(name, 0.0) + float(value)

    def note(self, text: str) -> None:
        """A remark that the ledger keeps with this run."""
        self.notes.append(text)

    def generator(self, purpose: str):
        """A torch.Generator that depends on the seed and the purpose only."""
        return torch.Generator().manual_seed(derived_seed(self.seed, purpose))

    def fresh(self, make: Callable[[], nn.Module], purpose: str = "student") -> nn.Module:
        """An untrained module whose first weights depend on the run's seed and the purpose only: all arms begin alike."""
        with restored_generators():
            seed_everything(derived_seed(self.seed, purpose))
            return make()

    def trained(
        self, key: Mapping[str, Any], make: Callable[[], nn.Module], train: Callable[[nn.Module], Any]
    ) -> nn.Module:
        """The module that `train(make())` yields, in eval mode: from the store when it was trained before, by anyone.

        key: JSON values that decide the weights: the bed's digest, the architecture, the settings, the seed, and a `version`
        to raise when the code of `train` changes. Whatever it costs is not this arm's: use it for what all arms share.
        """
        with restored_generators(), torch.enable_grad():
            seed_everything(int(key.get("seed", 0)))
            module = self.store.module(key, make, train)
        return module.eval()

    def tensors(self, key: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors that are computed once and shared: features of a frozen encoder, samples of a teacher."""
        with restored_generators():
            seed_everything(int(key.get("seed", 0)))
            return self.store.tensors(key, make)


def settings_of(value: Any) -> Any:
    """A dataclass of settings as JSON values."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
