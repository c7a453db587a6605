"""What a paper is here: a claim, and the miniature that checks it.

    paper = Paper(id=2, title=..., claim=..., composition=..., metric="accuracy", better="higher",
                  method=Arm(train, {"objective": ...}), baseline=Arm(...), control=Arm(...),
                  miniature=Miniature(beds=(bed,), seeds=5))

`limbeck/papers/<method>.py` holds one; its file name is the paper's name. Nothing here imports torch, so that listing is quick.

An arm is a function `run(run, **settings) -> {metric: value}`: it trains and measures with the seed and on the split that
`run` (`limbeck.experiments.Run`) carries. Baseline, method and control are given the same beds, seeds, steps and samples,
and as many settings to choose from; `limbeck.experiments.runner` holds them to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from limbeck.errors import UsageError

SIDES = ("method", "baseline", "control")


@dataclass(frozen=True)
class Arm:
    """One side of a miniature.

    run: function of (run, **settings) that returns measured metrics by name. It is a module's top-level function, because
    other processes call it by name. settings: its fixed keyword settings (JSON values; they enter the ledger). tune: keyword
    to the values to choose from: every combination is tried with the tuning seeds on the validation split, and the best by the
    paper's metric is used for the real seeds. about: one line for the table.
    """

    run: Callable[..., Mapping[str, float]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    tune: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    about: str = ""

    def __post_init__(self) -> None:
        for name, values in self.tune.items():
            if not isinstance(values, (tuple, list)) or not values:
                raise UsageError(f"tune[{name!r}]={values!r}: give a tuple of the values to choose from")
            if name in self.settings:
                raise UsageError(f"{name!r} is both fixed and tuned: name it once")

    def candidates(self) -> list[dict[str, Any]]:
        """Every combination of the tuned settings, merged with the fixed ones; one entry when nothing is tuned."""
        out = [dict(self.settings)]
        for name, values in self.tune.items():
            out = [{**chosen, name: value} for chosen in out for value in values]
        return out


@dataclass(frozen=True)
class Comparison:
    """`method` is better than `against` in `metric`: the paired differences over seeds, signed so that positive is better,
    have a 95 % interval above -`margin`.

    margin: 0 for "better"; positive for "as good as, up to margin"; negative for "better by at least". better: "higher" or
    "lower"; None takes the paper's. decisive: the verdict of the paper needs this comparison; the others are reported only.
    """

    metric: str | None = None
    method: str = "method"
    against: str = "baseline"
    better: str | None = None
    margin: float = 0.0
    decisive: bool = True
    text: str = ""

    def __post_init__(self) -> None:
        if self.better not in (None, "higher", "lower"):
            raise UsageError(f"better={self.better!r}: must be 'higher' or 'lower'")
        if self.method == self.against:
            raise UsageError(f"method and against are both {self.method!r}: a comparison needs two arms")


@dataclass(frozen=True)
class Sequential:
    """Looks planned before the run: after `looks[0]` seeds, then `looks[1]`, ...; each look tests at level 0.05 / len(looks)
    (the error split evenly, Bonferroni), so the verdict's error over all looks stays within 0.05. The run ends at the first
    look that is conclusive."""

    looks: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.looks) < 1 or self.looks[0] < 3 or any(b <= a for a, b in zip(self.looks, self.looks[1:])):
            raise UsageError(f"looks={self.looks!r}: must grow and begin at 3 or more, as (3, 6, 10)")


@dataclass(frozen=True)
class Miniature:
    """The small experiment: beds (see `limbeck.beds`), how many seeds (fixed, or `Sequential` looks), and what must be equal
    between the arms.

    equal: costs that every arm must have spent alike, to 1 %: names an arm records (`steps`, `samples`, `parameters`, `bytes`
    ...). Leave one out only with a reason in `why_unequal`, which the ledger shows. tuning_seeds: how many seeds the choice of
    settings uses; they are never those of the verdict.
    """

    beds: tuple[Any, ...]
    seeds: int | Sequential = 3
    equal: tuple[str, ...] = ("steps", "samples")
    why_unequal: str = ""
    tuning_seeds: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.seeds, int) and self.seeds < 2:
            raise UsageError(f"seeds={self.seeds}: an interval needs at least 2, a verdict at least 3")
        if not self.beds:
            raise UsageError("beds is empty: a miniature needs data to run on")


@dataclass(frozen=True)
class Paper:
    """A published system: the catalogue's id, its claim, and the miniature that re-checks it. See the module."""

    id: int
    title: str
    claim: str
    composition: str
    method: Arm
    baseline: Arm
    control: Arm
    miniature: Miniature
    metric: str
    better: str = "higher"
    others: Mapping[str, Arm] = field(default_factory=dict)
    comparisons: tuple[Comparison, ...] = ()
    left_out: str = ""

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise UsageError(f"better={self.better!r}: must be 'higher' or 'lower'")
        taken = set(SIDES) & set(self.others)
        if taken:
            raise UsageError(f"others names {sorted(taken)}: those are the paper's own sides")
        for row in self.comparisons:
            for name in (row.method, row.against):
                if name not in self.arms:
                    raise UsageError(f"a comparison names the arm {name!r}; there are {', '.join(self.arms)}")
        tried = {name: len(arm.candidates()) for name, arm in self.arms.items()}
        if tried["baseline"] < tried["method"]:
            raise UsageError(
                f"the method chooses among {tried['method']} settings, the baseline among {tried['baseline']}: "
                "give the baseline at least as many"
            )

    @property
    def arms(self) -> dict[str, Arm]:
        """All arms by name: the method, the baseline, the control and the others."""
        return {"method": self.method, "baseline": self.baseline, "control": self.control, **self.others}

    @property
    def compared(self) -> tuple[Comparison, ...]:
        """The comparisons with the paper's metric filled in; method against baseline and control when none are given."""
        rows = self.comparisons or (Comparison(), Comparison(against="control"))
        return tuple(
            Comparison(
                row.metric or self.metric,
                row.method,
                row.against,
                row.better or self.better,
                row.margin,
                row.decisive,
                row.text,
            )
            for row in rows
        )
