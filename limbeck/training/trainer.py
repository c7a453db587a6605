"""The Trainer: one loop that every procedure runs in.

    prepare -> (resume) -> [ batch -> mix -> compute -> watch -> move -> average -> log, evaluate, checkpoint ]* -> History

Everything random in a step is a function of (seed, step) and the order of the data of (seed, epoch, position), so a
checkpoint holds no generator state, and a run that was killed and started again ends with the same weights bit for bit on
the same machine.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.files import write_json
from limbeck.progress import bar
from limbeck.signals import to_device
from limbeck.training.average import Average
from limbeck.training.batches import Feed, channels_last, part, size
from limbeck.training.checkpoints import (
    Checkpoints,
    flatten_optimizer,
    module_tensors,
    restore_modules,
    restore_optimizer,
    select,
)
from limbeck.training.config import TrainingConfig
from limbeck.training.history import History
from limbeck.training.procedures import Procedure, State, parameter_shapes
from limbeck.training.randomness import derived_seed, restored_generators, seed_everything
from limbeck.training.schedules import rate_factor
from limbeck.training.trackers import finish_all, log_all, make_trackers
from limbeck.training.update import Updater
from limbeck.training.watch import Watch

EXAMPLES = 8  # that a procedure sees in `prepare`
DEFERRED = 25  # steps between reads of the loss on devices that run ahead of the host


class Trainer:
    """Runs a procedure on a task's train split and returns the History; the modules are trained in place.

    config: what decides the run. folder: where checkpoints ("checkpoints/") and "history.json" go; None: nothing is
    written. seed: of the data order, augmentation, dropout, mixing and connectors. progress: a bar on standard error.
    trackers: see `limbeck.training.trackers`.

    Called again with the same folder it continues after the last checkpoint, or, when the run had finished, loads the
    final weights and returns the stored history. Device and processes are those of `accelerate` (`accelerate launch`,
    ACCELERATE_USE_CPU=1); every process computes its part of each batch of `batch_size` examples and the sum of the
    gradients moves all of them alike. Batch normalization sees a process's own part only.

    Raises TrainingError when the loss or a gradient is not finite, DataError for an empty train split, UsageError for
    checkpoints of another run or a config that does not fit the task, LimbeckError when a checkpoint cannot be written.
    """

    def __init__(
        self,
        config: TrainingConfig,
        folder: Path | str | None = None,
        seed: int = 0,
        progress: bool = True,
        trackers: Iterable[Any] = (),
        title: str = "training",
    ):
        if not isinstance(config, TrainingConfig):
            raise UsageError(f"config: expected a TrainingConfig, got {type(config).__name__}")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise UsageError(f"seed={seed!r}: must be a whole number of at least 0")
        self.config, self.seed, self.progress, self.title = config, seed, progress, title
        self.folder = Path(folder) if folder is not None else None
        self.trackers = tuple(trackers)

    def run(self, procedure: Procedure, task: Any) -> History:
        """Train, or go on training, until the config's last step."""
        with restored_generators():
            return _Run(self, procedure, task).go()


class _Run:
    """One call of `Trainer.run`."""

    def __init__(self, trainer: Trainer, procedure: Procedure, task: Any):
        from accelerate import Accelerator

        self.trainer, self.procedure, self.task = trainer, procedure, task
        self.config, self.seed = trainer.config, trainer.seed
        self.accelerator = Accelerator()
        self.feed = Feed(task, self.config, self.seed, self.accelerator.process_index)
        self.per_epoch, self.steps = self.feed.per_epoch, self.config.total_steps(self.feed.examples)
        self.device = self.accelerator.device
        self.main = self.accelerator.is_main_process
        self.checkpoints = Checkpoints(trainer.folder / "checkpoints") if trainer.folder else None
        self.history = History()
        self.watch = Watch(self.config)
        self.note = ""
        self._prepare()

    def _prepare(self) -> None:
        for module in self.procedure.modules.values():
            module.to(self.device)
        seed_everything(derived_seed(self.seed, "prepare"))
        example = to_device(part(self.feed.first(), 0, EXAMPLES), self.device)
        self.procedure.prepare(example, self.device)
        for module in self.procedure.modules.values():
            module.to(self.device)
            if self.config.channels_last:
                module.to(memory_format=torch.channels_last)
        self.updater = Updater(self.procedure, self.config, self.accelerator)
        modules = self.procedure.modules
        self.average = Average(modules, self.config.average) if self.config.average else None

    def _identity(self) -> dict[str, Any]:
        return {
            "config": self.config.identity(),
            "seed": self.seed,
            "examples": self.feed.examples,
            "task": [self.task.digest(), getattr(self.task, "augmentation", "")],
            "modules": parameter_shapes(self.procedure.kept_modules()),
            "procedure": self.procedure.describe(),
        }

    def go(self) -> History:
        started, self.identity = time.perf_counter(), self._identity()
        first, finished = self._resume()
        before = self.history.seconds
        if finished:
            self._settle()
            self._write_history()
            return self.history
        trackers = []
        if self.main:
            trackers = make_trackers(
                self.trainer.trackers, self.trainer.folder, self.trainer.title, self.config.to_json()
            )
        try:
            with bar(self.trainer.title, self.steps, self.trainer.progress and self.main) as shown:
                shown.update(first)
                for step, batch in zip(range(first, self.steps), self.feed.start(first), strict=False):
                    self._step(step, batch)
                    self.history.samples += size(batch)
                    self.history.seconds = before + time.perf_counter() - started
                    self._after(step, trackers)
                    shown.update(step + 1, self.note)
        finally:
            finish_all(trackers)
        self._share_statistics()
        if self.average:
            self.average.write()
        self._settle()
        self.history.seconds = before + time.perf_counter() - started
        self._save(self.steps, finished=True)
        self._write_history()
        return self.history

    def _settle(self) -> None:
        """Leave the modules as users expect them: in evaluation mode and the usual memory order."""
        for module in self.procedure.modules.values():
            module.eval()
            if self.config.channels_last:
                module.to(memory_format=torch.contiguous_format)

    def _write_history(self) -> None:
        if self.main and self.trainer.folder:
            write_json(self.trainer.folder / "history.json", self.history.to_json())

    def _state(self, step: int) -> State:
        accelerator = self.accelerator
        epoch = step / self.per_epoch
        return State(
            step, self.steps, epoch, self.seed, self.device, accelerator.process_index, accelerator.num_processes
        )

    def _step(self, step: int, batch: Mapping[str, Any]) -> None:
        config, state = self.config, self._state(step)
        for module in self.procedure.modules.values():
            if not module.training:
                module.train()
        factor = rate_factor(config.schedule, step, self.steps, config.warmup, config.milestones, config.decay)
        values = self.updater.compute(batch, state)
        self.watch.add(step, (step + 1) / self.per_epoch, config.learning_rate * factor, values)
        if self.device.type == "cpu" or (step + 1) % DEFERRED == 0:
            self.watch.read()  # on the CPU before the weights move
        self.updater.move(factor)
        self.procedure.after_step(state)
        if self.average:
            self.average.update(step)

    def _after(self, step: int, trackers: list[Any]) -> None:
        done, last = step + 1, step + 1 == self.steps
        log_every = self.config.log_every or max(1, self.steps // 200)
        if done % log_every == 0 or last:
            self.watch.read()
            entry = self.watch.entry()
            self.history.steps.append(entry)
            self.note = f"loss {entry['loss']:.4g}" + self._metric()
            log_all(trackers, "train", entry, done)
        if last or self._due(done, self.config.evaluate_every):
            evaluation = self._evaluate(done)
            if evaluation:
                self.history.evaluations.append(evaluation)
                self.note = self.note.partition("  ")[0] + self._metric()
                log_all(trackers, evaluation["split"], evaluation, done)
        every = self.config.checkpoint_every or min(self.per_epoch, 1000)
        if done % every == 0 and not last:
            self._save(done)

    def _due(self, done: int, epochs: float | None) -> bool:
        return epochs is not None and done % max(1, round(epochs * self.per_epoch)) == 0

    def _metric(self) -> str:
        name = getattr(self.task, "metric", None)
        found = self.history.evaluations[-1].get(name) if self.history.evaluations else None
        return f"  validation {name} {found:.4g}" if isinstance(found, float) else ""

    def _evaluate(self, done: int) -> dict[str, Any] | None:
        model = self.procedure.model()
        self._share_statistics()
        metrics = None
        if model is not None and self.main:
            modes = {module: module.training for module in model.modules()}
            model.eval()
            try:
                with self.average.shown() if self.average else contextlib.nullcontext():
                    metrics = self.task.evaluate(self._forward, split="validation", batch_size=256)
            finally:
                for module, mode in modes.items():
                    module.training = mode
        self.accelerator.wait_for_everyone()
        if metrics is None:
            return None
        finite = {name: float(v) if math.isfinite(v) else None for name, v in metrics.items()}
        return {"step": done, "epoch": done / self.per_epoch, "split": "validation", **finite}

    @torch.no_grad()
    def _forward(self, batch: Mapping[str, Any]) -> Tensor:
        batch = channels_last(batch) if self.config.channels_last else batch
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            logits = self.procedure.forward(to_device(batch, self.device))
        return logits.float().cpu()

    @torch.no_grad()
    def _share_statistics(self) -> None:
        """Average running statistics over processes: each saw its own part of the batches."""
        if self.accelerator.num_processes == 1:
            return
        for module in self.procedure.kept_modules().values():
            for buffer in module.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self.accelerator.reduce(buffer, "mean"))

    def _resume(self) -> tuple[int, bool]:
        """Load the last checkpoint, if there is one; the next step, and whether the run had finished."""
        found = self.checkpoints.latest(self.identity) if self.checkpoints else None
        if found is None:
            return 0, False
        tensors, state = found
        restore_modules(self.procedure.kept_modules(), select(tensors, "modules"))
        self.history = History.from_json(state["history"])
        if state["finished"]:
            return state["step"], True
        self.watch.restore(state["watch"])
        for name, optimizer in self.updater.optimizers.items():
            restore_optimizer(optimizer, select(tensors, f"optimizers/{name}"), state["optimizers"][name])
        if self.average:
            self.average.restore(select(tensors, "average"))
        return state["step"], False

    def _save(self, done: int, finished: bool = False) -> None:
        if self.checkpoints is None:
            return
        watch = self.watch.to_json()  # raises for a loss that is not finite: such weights are never kept
        if not finished:
            self._share_statistics()
        if self.main:
            tensors = _under("modules", module_tensors(self.procedure.kept_modules()))
            values = {}
            if not finished:
                for name, optimizer in self.updater.optimizers.items():
                    flat, values[name] = flatten_optimizer(optimizer)
                    tensors |= _under(f"optimizers/{name}", flat)
                tensors |= _under("average", self.average.tensors) if self.average else {}
            state = {
                "identity": self.identity,
                "finished": finished,
                "history": self.history.to_json(),
                "watch": watch,
                "optimizers": values,
            }
            self.checkpoints.save(done, tensors, state)
        self.accelerator.wait_for_everyone()


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": value for name, value in tensors.items()}
