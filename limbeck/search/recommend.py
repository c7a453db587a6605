"""Recommend: learn from finished runs on other data sets which configuration suits a new one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UsageError

Configuration = Mapping[str, Any]
Descriptors = Mapping[str, float]


@dataclass(frozen=True)
class Trial:
    """One finished run. configuration: settings by name, numbers or words. dataset: the data set's name. score: higher is better."""

    configuration: Configuration
    dataset: str
    score: float


class Recommender:
    """Ranks configurations for a data set that none of them was run on.

        score(configuration c, data set d), in deviations from d's own mean  ~  w . [x_c, x_c (x) x_d]

    a ridge regression: x_c holds the configuration (words one-hot, numbers standardized), x_d the data set's descriptors
    (standardized), and the products let a data set prefer what others do not. Scores are standardized per data set first,
    because an easy data set says nothing about a configuration.

    trials: finished runs, of two data sets or more. datasets: descriptors of each of them, the same names for all: size,
    number of classes, mean length, the teacher's score ... regularization: of the ridge, relative to the number of trials.

    Source: He et al., "Distiller: A Systematic Study of Model Distillation Methods in Natural Language Processing", 2021,
    section 5 (AutoDistiller). Deviation: a ridge regression in place of an ensemble of learned predictors.
    Raises UsageError for fewer than two data sets, missing descriptors, settings that not every trial has, or a value of a
    setting that no trial had.
    """

    def __init__(self, trials: Sequence[Trial], datasets: Mapping[str, Descriptors], regularization: float = 0.01):
        names = sorted({trial.dataset for trial in trials})
        if len(names) < 2:
            raise UsageError(f"a recommender learns across data sets; the trials are of {names}: give two or more")
        if not (isinstance(regularization, (int, float)) and 0 < regularization < math.inf):
            raise UsageError(f"regularization={regularization!r} must be a positive finite number")
        self._settings = _columns(trials)
        self._descriptors = sorted({key for name in names for key in _described(datasets, name)})
        described = torch.tensor(
            [[self._number(datasets[n], key) for key in self._descriptors] for n in names], dtype=torch.float64
        )
        self._centre = described.mean(0) if self._descriptors else described.new_zeros(0)
        spread = described.std(0, unbiased=False) if self._descriptors else described.new_ones(0)
        self._spread = torch.where(spread == 0, torch.ones_like(spread), spread)
        rows = torch.stack([self._row(trial.configuration, datasets[trial.dataset]) for trial in trials])
        scores = torch.empty(len(trials), dtype=torch.float64)
        for name in names:
            at = torch.tensor([trial.dataset == name for trial in trials])
            own = torch.tensor([trial.score for trial in trials if trial.dataset == name], dtype=torch.float64)
            deviation = own.std(unbiased=False)
            scores[at] = (own - own.mean()) / (deviation if deviation > 0 else 1.0)
        self._mean = rows.mean(0)
        self._weights = ridge(rows - self._mean, scores, regularization * len(trials))

    def predict(self, configurations: Sequence[Configuration], dataset: Descriptors) -> Tensor:
        """Predicted scores (n,), comparable between the configurations only: higher is better."""
        rows = torch.stack([self._row(configuration, dataset) for configuration in configurations])
        return (rows - self._mean) @ self._weights

    def rank(self, configurations: Sequence[Configuration], dataset: Descriptors) -> list[int]:
        """Indices of the configurations, the most promising first; of equals, the one that was named first."""
        return self.predict(configurations, dataset).sort(descending=True, stable=True).indices.tolist()

    def _number(self, described: Descriptors, key: str) -> float:
        value = described.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UsageError(f"descriptor {key!r} is {value!r}: every data set needs a finite number for it")
        return float(value)

    def _row(self, configuration: Configuration, described: Descriptors) -> Tensor:
        if set(configuration) != set(self._settings):
            odd = sorted(set(configuration) ^ set(self._settings))
            raise UsageError(
                f"a configuration has the settings of the trials, all of them: {', '.join(odd)} on one side only"
            )
        own = [number for key, column in self._settings.items() for number in column.encode(configuration[key])]
        x = torch.tensor(own, dtype=torch.float64)
        values = torch.tensor([self._number(described, key) for key in self._descriptors], dtype=torch.float64)
        z = (values - self._centre) / self._spread
        return torch.cat([x, torch.outer(x, z).flatten()])


@dataclass(frozen=True)
class _Column:
    """How one setting becomes numbers: standardized, or one-hot over the words that the trials used."""

    name: str
    words: tuple[Any, ...]
    mean: float = 0.0
    spread: float = 1.0

    def encode(self, value: Any) -> list[float]:
        if not self.words:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise UsageError(f"setting {self.name!r} is a number in the trials, not {value!r}")
            return [(value - self.mean) / self.spread]
        if value not in self.words:
            raise UsageError(f"setting {self.name!r}: no trial had {value!r}, only {', '.join(map(repr, self.words))}")
        return [float(value == word) for word in self.words]


def _columns(trials: Sequence[Trial]) -> dict[str, _Column]:
    out = {}
    for name in sorted(trials[0].configuration):
        if any(name not in trial.configuration for trial in trials):
            raise UsageError(f"setting {name!r} is not in every trial")
        values = [trial.configuration[name] for trial in trials]
        if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
            numbers = torch.tensor(values, dtype=torch.float64)
            out[name] = _Column(name, (), numbers.mean().item(), numbers.std(unbiased=False).item() or 1.0)
        else:
            out[name] = _Column(name, tuple(dict.fromkeys(values)))
    return out


def _described(datasets: Mapping[str, Descriptors], name: str) -> Descriptors:
    if name not in datasets:
        raise UsageError(f"data set {name!r} has trials and no descriptors; there are {', '.join(datasets) or 'none'}")
    return datasets[name]


def ridge(x: Tensor, y: Tensor, penalty: float) -> Tensor:
    """argmin_w |x w - y|^2 + penalty |w|^2 of x (n, d) and y (n,): (d,)."""
    return torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's correlation of two lists: Pearson's of their ranks, equal values sharing the mean of their ranks.

    Raises UsageError for lists of two lengths or of fewer than two; 0 where one list is constant.
    """
    if len(x) != len(y) or len(x) < 2:
        raise UsageError(f"two lists of {len(x)} and {len(y)} values: they must be of one length, at least 2")
    ranks = []
    for values in (x, y):
        v = torch.tensor([float(value) for value in values], dtype=torch.float64)
        less, equal = (v[None] < v[:, None]).sum(1), (v[None] == v[:, None]).sum(1)
        rank = less + (equal + 1) / 2
        ranks.append(rank - rank.mean())
    scale = (ranks[0].norm() * ranks[1].norm()).item()
    return (ranks[0] @ ranks[1]).item() / scale if scale else 0.0
