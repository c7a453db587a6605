"""Regularized evolution: a population that forgets its oldest member, however good it was.

population <- random candidates
repeat:  parent = best of a random few of the population;  child = mutate(parent);  add the child, drop the oldest
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from limbeck.errors import UsageError

Candidate = TypeVar("Candidate")
TRIES = 1000  # draws of a candidate that keeps to the budget before giving up


@dataclass(frozen=True)
class Found(Generic[Candidate]):
    """The best candidate of all, its score, and every (candidate, score) in the order of evaluation."""

    best: Candidate
    score: float
    seen: tuple[tuple[Candidate, float], ...]


def evolve(
    sample: Callable[[torch.Generator], Candidate],
    mutate: Callable[[Candidate, torch.Generator], Candidate],
    score: Callable[[Candidate], float],
    *,
    evaluations: int,
    population: int = 20,
    tournament: int = 5,
    allowed: Callable[[Candidate], bool] | None = None,
    seed: int = 0,
) -> Found[Candidate]:
    """Search for the candidate of the highest score.

    sample: draws a candidate; mutate: changes one a little; score: higher is better, NaN counts as the worst. They draw from the
    generator they are given and from nothing else. evaluations: calls of `score`, those of the first population included.
    population: how many are alive. tournament: how many of them, different ones, compete to be the parent. allowed: a
    candidate that breaks the budget is drawn anew and never scored.

    Raises UsageError for sizes that do not fit, and where no candidate within the budget is found.
    Source: Real, Aggarwal, Huang and Le, "Regularized Evolution for Image Classifier Architecture Search", AAAI 2019, algorithm 1.
    """
    if not 1 <= tournament <= population <= evaluations:
        raise UsageError(
            f"evolve: tournament={tournament}, population={population}, evaluations={evaluations}: must be at least 1 and "
            "grow in this order"
        )
    draws = torch.Generator().manual_seed(seed)
    alive: deque[tuple[Candidate, float]] = deque()
    seen: list[tuple[Candidate, float]] = []

    def within(make: Callable[[], Candidate]) -> Candidate:
        for _ in range(TRIES):
            candidate = make()
            if allowed is None or allowed(candidate):
                return candidate
        raise UsageError(f"evolve: none of {TRIES} candidates was allowed: widen the budget or the space")

    while len(seen) < evaluations:
        if len(alive) < population:
            candidate = within(lambda: sample(draws))
        else:
            few = torch.randperm(len(alive), generator=draws)[:tournament].tolist()
            parent = max((alive[at] for at in few), key=lambda pair: pair[1])[0]
            candidate = within(lambda parent=parent: mutate(parent, draws))
        value = float(score(candidate))
        entry = (candidate, value if value == value else float("-inf"))
        seen.append(entry)
        alive.append(entry)
        if len(alive) > population:
            alive.popleft()
    best, value = max(seen, key=lambda pair: pair[1])
    return Found(best, value, tuple(seen))
