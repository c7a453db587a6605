"""Running a paper's miniature: plan the seeds, choose settings, run every arm, judge, write the ledger.

    limbeck papers run NAME...   ->   for each paper: tuning units (validation split, tuning seeds) -> chosen settings ->
                                      units arm x seed (test split) -> fairness checks -> verdict -> ledger/NAME.json

Finished units are kept under a digest of the paper's and beds' sources, data and settings: a run that was cut off goes on, and a
changed file starts anew. Seeds are 0, 1, 2, ...; tuning uses 1000, 1001, ...
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError, UsageError
from limbeck.experiments.backends import Backend, pool
from limbeck.experiments.catalogue import catalogue, ledger_folder
from limbeck.experiments.paper import Comparison, Paper, Sequential
from limbeck.experiments.statistics import INCONCLUSIVE, LEVEL, look_level, overall, paired_difference, verdict
from limbeck.experiments.units import THREADS, Unit, fingerprint, finished, keep, load_paper
from limbeck.files import write_json
from limbeck.progress import bar

TUNING_SEED = 1000
TOLERANCE = 0.01  # relative; costs that must be equal may differ by this much
Results = dict[tuple[str, int], dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """What is decided before the first number is seen: the looks (seed counts) and the level of each."""

    looks: tuple[int, ...]
    level: float

    @staticmethod
    def of(paper: Paper, seeds: int | None) -> Plan:
        """The paper's plan, or `seeds` seeds and one look at 95 %. Raises UsageError for fewer than 2."""
        wanted = paper.miniature.seeds if seeds is None else seeds
        if isinstance(wanted, Sequential):
            return Plan(tuple(wanted.looks), look_level(len(wanted.looks)))
        if wanted < 2:
            raise UsageError(f"seeds={wanted}: an interval needs at least 2, a verdict at least 3")
        return Plan((wanted,), LEVEL)


def run_papers(
    names: Sequence[str],
    *,
    seeds: int | None = None,
    jobs: int = 1,
    backend: str = "processes",
    ledger: Path | None = None,
    fresh: bool = False,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Run miniatures one paper after another and return their ledger entries, which are written to `ledger`/NAME.json.

    seeds: how many, in place of the paper's own plan. jobs: units at a time. backend: "processes" or "ray". fresh: run again what
    was finished before. Raises UsageError for a name that is not there or arms that were not treated alike, and whatever an arm
    raises; finished units are kept in every case.
    """
    for name in names:
        load_paper(name)
    entries = []
    with pool(backend, jobs) as workers:
        for name in names:
            found = _Miniature(name, seeds, workers, fresh, progress).go()
            write_json((ledger or ledger_folder()) / f"{name.rpartition('.')[2]}.json", found)
            entries.append(found)
    return entries


class _Miniature:
    """One paper's run."""

    def __init__(self, name: str, seeds: int | None, workers: Backend, fresh: bool, progress: bool):
        self.name, self.workers, self.fresh, self.progress = name, workers, fresh, progress
        self.paper = load_paper(name)
        self.mark = fingerprint(name)
        self.plan = Plan.of(self.paper, seeds)
        self.spent: list[dict[str, Any]] = []

    def go(self) -> dict[str, Any]:
        begun = time.perf_counter()
        settings, tuning = self._choose()
        results: Results = {}
        for look in self.plan.looks:
            results |= self._measure(settings, range(look))
            rows = [judge(row, results, range(look), self.plan.level) for row in self.paper.compared]
            found = overall(row["verdict"] for row in rows if row["decisive"])
            if found != INCONCLUSIVE:
                break
        equal = check_equal(self.paper, results)
        return self._entry(settings, tuning, results, rows, found, equal, time.perf_counter() - begun)

    def _choose(self) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        """The settings of every arm, and what the ledger says of how they were chosen."""
        paper, metric = self.paper, self.paper.metric
        seeds = range(TUNING_SEED, TUNING_SEED + paper.miniature.tuning_seeds)
        candidates = {name: arm.candidates() for name, arm in paper.arms.items()}
        units = {
            (name, at, seed): Unit(self.name, name, seed, "validation", chosen)
            for name, rows in candidates.items()
            if len(rows) > 1
            for at, chosen in enumerate(rows)
            for seed in seeds
        }
        found = self._run(units, "tuning")
        settings, tuning = {}, {}
        for name, rows in candidates.items():
            if len(rows) == 1:
                settings[name], tuning[name] = rows[0], {"settings": 1}
                continue
            scores = [
                statistics.fmean(_metric(found[name, at, seed], metric) for seed in seeds) for at in range(len(rows))
            ]
            pick = (max if paper.better == "higher" else min)(range(len(rows)), key=lambda at: scores[at])
            settings[name] = rows[pick]
            tuned = list(paper.arms[name].tune)
            tuning[name] = {
                "settings": len(rows),
                "seeds": list(seeds),
                "split": "validation",
                "tried": [{**{k: row[k] for k in tuned}, metric: score} for row, score in zip(rows, scores)],
                "chosen": {k: rows[pick][k] for k in tuned},
            }
        return settings, tuning

    def _measure(self, settings: Mapping[str, dict[str, Any]], seeds: Iterable[int]) -> Results:
        units = {
            (name, seed): Unit(self.name, name, seed, "test", chosen)
            for seed in seeds
            for name, chosen in settings.items()
        }
        return self._run(units, "running")

    def _run(self, units: Mapping[Any, Unit], word: str) -> dict[Any, dict[str, Any]]:
        """Results by the units' keys: kept ones, and the others run now and kept as they come in."""
        done = {} if self.fresh else {key: kept for key, unit in units.items() if (kept := finished(unit, self.mark))}
        missing = {key: unit for key, unit in units.items() if key not in done}
        with bar(f"{self.name}: {word}", len(units), self.progress and bool(units)) as shown:
            shown.update(len(done))
            for key, result in self.workers.run(missing):
                keep(units[key], self.mark, result)
                done[key] = result
                shown.update(len(done), f"{units[key].arm}, seed {units[key].seed}")
        self.spent += done.values()
        return done

    def _entry(self, settings, tuning, results, rows, found, equal, wall) -> dict[str, Any]:
        from limbeck.measure.environment import environment

        paper = self.paper
        used = {(row["digest"], row["seconds"]) for result in self.spent for row in result["store"]}
        hits, saved = savings(self.spent)
        seeds = sorted({seed for _, seed in results})
        known = {row["id"]: row for row in catalogue()}.get(paper.id, {})
        return {
            "format": 1,
            "id": paper.id,
            "name": self.name.rpartition(".")[2],
            "title": paper.title,
            "family": known.get("family"),
            "claim": paper.claim,
            "verdict": found,
            "metric": paper.metric,
            "better": paper.better,
            "comparisons": rows,
            "arms": {
                name: {
                    "about": arm.about,
                    "settings": settings[name],
                    "tuning": tuning[name],
                    "seeds": {str(seed): _shown(results[name, seed]) for seed in seeds},
                }
                for name, arm in paper.arms.items()
            },
            "plan": {"looks": list(self.plan.looks), "level": self.plan.level, "seeds": seeds},
            "equal": equal,
            "why_unequal": paper.miniature.why_unequal,
            "beds": [bed.describe() for bed in paper.miniature.beds],
            "left_out": paper.left_out,
            "seconds": {
                "units": sum(result["seconds"] for result in self.spent),
                "shared": sum(seconds for _, seconds in used),
                "saved_by_store": saved,
                "wall": wall,
            },
            "store": {"entries": len(used), "hits": hits},
            "fingerprint": self.mark,
            "environment": {**environment(), "threads": THREADS},
            "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }


def savings(results: Iterable[Mapping[str, Any]]) -> tuple[int, float]:
    """How often a unit found an entry instead of making it, and the seconds that saved; an entry counts once per unit."""
    found = []
    for result in results:
        made = {row["digest"] for row in result["store"] if not row["hit"]}
        found += {row["digest"]: row["seconds"] for row in result["store"] if row["digest"] not in made}.values()
    return len(found), sum(found)


def _shown(result: Mapping[str, Any]) -> dict[str, Any]:
    out = {key: result[key] for key in ("metrics", "costs", "seconds")}
    return {**out, "notes": result["notes"]} if result["notes"] else out


def _metric(result: Mapping[str, Any], name: str) -> float:
    try:
        return result["metrics"][name]
    except KeyError:
        raise LimbeckError(f"an arm returned no {name!r}, only {', '.join(result['metrics'])}") from None


def judge(row: Comparison, results: Results, seeds: Iterable[int], level: float) -> dict[str, Any]:
    """One comparison as the ledger shows it."""
    seeds = list(seeds)
    sides = [[_metric(results[arm, seed], row.metric) for seed in seeds] for arm in (row.method, row.against)]
    difference = paired_difference(*sides, better=row.better, level=level)
    return {
        "metric": row.metric,
        "method": row.method,
        "against": row.against,
        "better": row.better,
        "margin": row.margin,
        "decisive": row.decisive,
        "text": row.text,
        "verdict": verdict(difference, row.margin),
        **difference.to_json(),
    }


def check_equal(paper: Paper, results: Results) -> dict[str, Any]:
    """Every cost by arm (mean over seeds), and whether those that must be equal are.

    Raises UsageError when arms spent differently on a cost that the miniature holds equal.
    """
    names = sorted({name for result in results.values() for name in result["costs"]} | set(paper.miniature.equal))
    out = {}
    for name in names:
        spent: dict[str, list[float]] = {}
        for (arm, _), result in results.items():
            spent.setdefault(arm, []).append(result["costs"].get(name, 0.0))
        means = {arm: statistics.fmean(values) for arm, values in spent.items()}
        low, high = min(means.values()), max(means.values())
        same = math.isclose(low, high, rel_tol=TOLERANCE)
        required = name in paper.miniature.equal
        if required and not same:
            shown = ", ".join(f"{arm} {value:g}" for arm, value in means.items())
            raise UsageError(
                f"paper {paper.id}: the arms differ in {name} ({shown}), which the miniature holds equal. Give them the same, or take "
                f"{name!r} out of `equal` and say why in `why_unequal`"
            )
        out[name] = {"arms": means, "equal": same, "required": required}
    return out
