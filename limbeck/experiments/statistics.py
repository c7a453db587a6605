"""Paired statistics and the verdict that follows from them.

Each seed gives one difference d_i = method_i - baseline_i (its sign turned when lower is better). With mean m and sample deviation
s over n seeds, the two-sided interval at level 1 - a is

    m +- t(1 - a/2, n - 1) s / sqrt(n)                         (Student, 1908: exact for normal differences at any n)

A comparison holds when the interval lies above -margin, does not hold when it lies below -margin, else it is inconclusive.
With K looks planned beforehand each look uses a = 0.05 / K (Bonferroni), so that stopping at the first conclusive look errs with
probability 0.05 at most. A paper whose claim has several decisive comparisons holds only when all of them do, which needs no
further correction (intersection-union test; Berger, Technometrics 1982).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from limbeck.errors import UsageError

HOLDS, INCONCLUSIVE, FAILS = "holds", "inconclusive", "does not hold"
LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """Paired differences, positive is better: `mean`, the interval `low`..`high` at `level`, the deviation, and n."""

    differences: tuple[float, ...]
    mean: float
    deviation: float
    low: float
    high: float
    level: float

    def to_json(self) -> dict:
        return {**asdict(self), "differences": list(self.differences)}


def paired_difference(
    method: Sequence[float], against: Sequence[float], better: str = "higher", level: float = LEVEL
) -> Difference:
    """The paired differences of two equally long rows of numbers, one per seed, and their interval.

    Raises UsageError for rows of different length, fewer than two seeds, a number that is not finite, or an unknown `better`.
    """
    if better not in ("higher", "lower"):
        raise UsageError(f"better={better!r}: must be 'higher' or 'lower'")
    if len(method) != len(against):
        raise UsageError(f"{len(method)} numbers against {len(against)}: pairs need one of each per seed")
    if len(method) < 2:
        raise UsageError(f"{len(method)} seed: an interval needs at least 2")
    if not all(math.isfinite(value) for value in (*method, *against)):
        raise UsageError("a metric is not finite: this run cannot be judged")
    if not 0 < level < 1:
        raise UsageError(f"level={level}: must lie between 0 and 1")
    from scipy.stats import t

    sign = 1.0 if better == "higher" else -1.0
    differences = tuple(sign * (a - b) for a, b in zip(method, against))
    n = len(differences)
    mean = math.fsum(differences) / n
    deviation = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1))
    half = float(t.ppf(0.5 + level / 2, n - 1)) * deviation / math.sqrt(n)
    return Difference(differences, mean, deviation, mean - half, mean + half, level)


def verdict(difference: Difference, margin: float = 0.0) -> str:
    """What an interval says about "better than -margin": `holds`, `does not hold` or `inconclusive`."""
    if difference.low > -margin:
        return HOLDS
    if difference.high < -margin:
        return FAILS
    return INCONCLUSIVE


def overall(verdicts: Iterable[str]) -> str:
    """The verdict of a claim made of several: all hold, or one does not hold, or it is open."""
    rows = list(verdicts)
    if not rows:
        raise UsageError("no decisive comparison: a paper needs at least one")
    if FAILS in rows:
        return FAILS
    return HOLDS if all(row == HOLDS for row in rows) else INCONCLUSIVE


def look_level(looks: int, error: float = 1 - LEVEL) -> float:
    """The level of each of `looks` planned looks, the error split evenly over them."""
    if looks < 1:
        raise UsageError(f"looks={looks}: must be at least 1")
    return 1 - error / looks


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation with ties at their mean rank; 0 when one side is constant."""
    from scipy.stats import spearmanr

    if len(set(a)) < 2 or len(set(b)) < 2:
        return 0.0
    return float(spearmanr(a, b).statistic)
