"""TrainingConfig: everything that decides a training run, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from limbeck.errors import UsageError, did_you_mean

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "step", "linear", "constant")
PRECISIONS = ("fp32", "bf16")
DIVERGENCE = ("warn", "stop", "ignore")
# Fields that change what is kept or shown, never the weights: a run may be continued with other values of these.
WATCHING = ("evaluate_every", "checkpoint_every", "log_every", "divergence", "divergence_factor")

LATER = {"mixup_share": 1.0}  # fields that came after the first stored runs, and their defaults


@dataclass(frozen=True)
class TrainingConfig:
    """How long, on what, with which optimizer and schedule. Give exactly one of `epochs` and `steps`.

    epochs, steps: the length of the run. One step is one update by the optimizer; an epoch has
        floor(examples / batch_size) steps (at least one): a last smaller batch is left out.
    batch_size: examples per step, over all devices and pieces together.
    gradient_accumulation: pieces that each batch is computed in, one after the other; changes memory, not the result
        (except through batch normalization, which sees a piece at a time).
    optimizer: "adamw" (betas 0.9 and 0.999) or "sgd" (with `momentum` and `nesterov`).
    weight_decay: decoupled in adamw, added to the gradient in sgd. `decay_norms_and_biases=False` spares every
        parameter with fewer than two axes: biases and the scales and shifts of normalizations.
    schedule: "cosine" to 0, "linear" to 0, "step" (times `decay` at each of `milestones`), or "constant".
        `warmup`: fraction of all steps over which the rate first rises linearly. `milestones`: fractions of all steps.
    gradient_clipping: largest allowed 2-norm of all gradients of an optimizer; None: no clipping.
    precision: "fp32", or "bf16" (autocast; the weights stay float32). channels_last: memory order for convolutions.
    label_smoothing, mixup, cutmix: labels become (B, classes) probabilities, see `limbeck.training.mixing`.
        mixup_share: of the examples of a batch; below 1 the others stay as they are, and each has a weight of its own.
    augment: the task's own augmentation. limit: use only that many examples of the train split.
    evaluate_every: epochs between evaluations on the validation split; None: only at the end.
    checkpoint_every: steps between checkpoints; None: every epoch, and at least every 1000 steps. The end is always kept.
    log_every: steps per entry of the history; None: about 200 entries per run.
    average: decay of an exponential moving average of the weights, which is then what is evaluated and kept.
    divergence: what to do when the smoothed loss stays above `divergence_factor` times its best: warn, stop, ignore.

    Raises UsageError that names the field, the value and what is allowed.
    """

    epochs: float | None = None
    steps: int | None = None
    batch_size: int = 128
    gradient_accumulation: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    decay_norms_and_biases: bool = True
    momentum: float = 0.9
    nesterov: bool = True
    schedule: str = "cosine"
    warmup: float = 0.0
    milestones: tuple[float, ...] = (0.5, 0.75)
    decay: float = 0.1
    gradient_clipping: float | None = None
    precision: str = "fp32"
    channels_last: bool = False
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_share: float = 1.0
    augment: bool = True
    limit: int | None = None
    evaluate_every: float | None = None
    checkpoint_every: int | None = None
    log_every: int | None = None
    average: float | None = None
    divergence: str = "warn"
    divergence_factor: float = 10.0

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise UsageError(
                f"epochs={self.epochs!r}, steps={self.steps!r}: give exactly one of them, such as epochs=10"
            )
        for name in ("steps", "batch_size", "gradient_accumulation", "limit", "checkpoint_every", "log_every"):
            self._whole(name)
        positive = "a number above 0"
        self._number("epochs", lambda v: v > 0, positive, none=True)
        self._number("learning_rate", lambda v: v > 0, positive)
        self._number("weight_decay", lambda v: v >= 0, "0 or more")
        self._number("momentum", lambda v: 0 <= v < 1, "0 up to, not including, 1")
        self._number("warmup", lambda v: 0 <= v < 1, "a fraction of all steps, 0 up to, not including, 1")
        self._number("decay", lambda v: 0 < v <= 1, "above 0, at most 1")
        self._number("mixup_share", lambda v: 0 < v <= 1, "a share of each batch above 0, at most 1")
        if self.mixup_share < 1 and not self.mixup:
            raise UsageError(f"mixup_share={self.mixup_share!r}: there is no mixup to take a share of: set mixup")
        self._number("gradient_clipping", lambda v: v > 0, "a number above 0, or nothing", none=True)
        self._number("label_smoothing", lambda v: 0 <= v < 1, "0 up to, not including, 1")
        self._number("mixup", lambda v: v >= 0, "0 (off) or the alpha of its Beta distribution, such as 0.2")
        self._number("cutmix", lambda v: v >= 0, "0 (off) or the alpha of its Beta distribution, such as 1.0")
        self._number("evaluate_every", lambda v: v > 0, "epochs above 0, or nothing", none=True)
        self._number("average", lambda v: 0 < v < 1, "a decay between 0 and 1, such as 0.999, or nothing", none=True)
        self._number("divergence_factor", lambda v: v > 1, "a number above 1")
        for name in ("nesterov", "channels_last", "augment", "decay_norms_and_biases"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name}={getattr(self, name)!r}: must be true or false")
        self._choice("optimizer", OPTIMIZERS)
        self._choice("schedule", SCHEDULES)
        self._choice("precision", PRECISIONS)
        self._choice("divergence", DIVERGENCE)
        self._milestones()
        if self.gradient_accumulation > self.batch_size:
            raise UsageError(
                f"gradient_accumulation={self.gradient_accumulation}: a batch of batch_size={self.batch_size} "
                "examples cannot be computed in more pieces than it has examples"
            )

    def _whole(self, name: str) -> None:
        value = getattr(self, name)
        optional = name not in ("batch_size", "gradient_accumulation")
        if value is None and optional:
            return
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(
                f"{name}={value!r}: must be a whole number of at least 1{', or nothing' if optional else ''}"
            )

    def _number(self, name: str, allowed, words: str, none: bool = False) -> None:
        value = getattr(self, name)
        if value is None and none:
            return
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not allowed(value):
            hint = " (YAML reads 1e-3 as text: write 0.001 or 1.0e-3)" if isinstance(value, str) else ""
            raise UsageError(f"{name}={value!r}: must be {words}{hint}")

    def _choice(self, name: str, options: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in options:
            raise UsageError(f"{name}={value!r}: must be one of {', '.join(options)}. {did_you_mean(value, options)}")

    def _milestones(self) -> None:
        value = self.milestones
        if not isinstance(value, (list, tuple)):
            raise UsageError(f"milestones={value!r}: must be a list of fractions of all steps, such as [0.5, 0.75]")
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) and 0 < v < 1 for v in value)
        if not numbers or list(value) != sorted(set(value)):
            raise UsageError(f"milestones={value!r}: must be rising fractions of all steps between 0 and 1")
        object.__setattr__(self, "milestones", tuple(float(v) for v in value))

    def steps_per_epoch(self, examples: int) -> int:
        """Optimizer steps in one pass over that many examples (after `limit`)."""
        examples = min(examples, self.limit) if self.limit else examples
        return max(1, examples // self.batch_size)

    def total_steps(self, examples: int) -> int:
        """Optimizer steps of the whole run over a train split of that many examples."""
        if self.steps is not None:
            return self.steps
        return max(1, round(self.epochs * self.steps_per_epoch(examples)))

    def to_json(self) -> dict[str, Any]:
        """JSON that `from_json` reads. What came later is left out at its default, so that digests of older runs stay."""
        out = {**asdict(self), "milestones": list(self.milestones)}
        return {name: value for name, value in out.items() if name not in LATER or value != LATER[name]}

    @staticmethod
    def from_json(value: dict[str, Any]) -> TrainingConfig:
        """Read a config back. Raises UsageError for an unknown field, naming the near ones."""
        known = [field.name for field in fields(TrainingConfig)]
        for name in value:
            if name not in known:
                raise UsageError(f"training has no field {name!r}. {did_you_mean(name, known)}")
        return TrainingConfig(**value)

    def identity(self) -> dict[str, Any]:
        """The fields that decide the weights that come out."""
        return {name: value for name, value in self.to_json().items() if name not in WATCHING}
