"""Allocation: one option per item, the least loss within a budget.

    min sum_i loss_i(o_i)    subject to    sum_i cost_i(o_i) <= budget

Items are layers, heads, blocks, experts ...; options are bit widths, ranks, shares kept ...; costs are bytes, or latencies measured of
each option; losses come from `limbeck.search.sensitivity` or from anywhere. Losses that do not add up (the loss of the whole model)
are searched by evolution.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from limbeck.errors import BudgetError, UsageError
from limbeck.search.evolution import evolve

METHODS = ("milp", "dynamic")
CUTS = 100  # solutions that a solver's tolerance lets above the budget, forbidden one by one


@dataclass(frozen=True)
class Option:
    """What an item can become. name: how it is called in the result. cost: at least 0; loss: any finite number, lower is better."""

    name: Any
    cost: float
    loss: float = 0.0


Table = Mapping[str, Sequence[Option]]


@dataclass(frozen=True)
class Allocation:
    """The chosen option of every item, by name, with the sums of costs and losses."""

    choice: dict[str, Any]
    cost: float
    loss: float


def allocate(
    items: Table, budget: float, method: str = "milp", at_least: Mapping[Any, int] | None = None
) -> Allocation:
    """The choice of least total loss whose total cost is at most `budget`.

    method: "milp" (branch and bound of `scipy.optimize.milp`; losses that differ by less than 1e-9 of their range count as equal)
    or "dynamic" (the Pareto frontier of cost and loss, item by item: exact, and quick where costs are multiples of something).
    at_least: {option name: how many items must take an option of that name, or more}; for "milp" only.
    Raises BudgetError, with the least cost there is, where no choice keeps to the budget; UsageError for a table that cannot be right.
    """
    if method not in METHODS:
        raise UsageError(f"allocate: method={method!r}: allowed are {', '.join(map(repr, METHODS))}")
    check_table(items, budget)
    if at_least:
        check_counts(items, at_least, method)
    picked = _by_milp(items, budget, at_least or {}) if method == "milp" else _by_frontier(items, budget)
    return _result(items, picked)


def allocate_by_evolution(
    items: Table,
    budget: float,
    loss: Callable[[Mapping[str, Any]], float],
    *,
    evaluations: int = 200,
    population: int = 20,
    tournament: int = 5,
    seed: int = 0,
) -> Allocation:
    """The best choice found within the budget for a loss of the whole choice: `loss({item: option name})`, lower is better.

    Begins with the additive optimum of the options' own losses, so the result is never worse than that. A child changes one
    item's option, and where that breaks the budget, further random items go to cheaper options until it fits again.
    See `limbeck.search.evolve`.
    """
    check_table(items, budget)
    names = list(items)
    costs = [[option.cost for option in items[name]] for name in names]
    waiting = [tuple(_by_frontier(items, budget))]

    def fit(choice: list[int], fixed: int | None, draws: torch.Generator) -> tuple[int, ...]:
        while math.fsum(costs[i][o] for i, o in enumerate(choice)) > budget:
            cheaper = [i for i, o in enumerate(choice) if i != fixed and costs[i][o] > min(costs[i])]
            if not cheaper:  # the changed item alone is too dear
                fixed = None
                continue
            item = cheaper[int(torch.randint(len(cheaper), (), generator=draws))]
            less = [o for o, cost in enumerate(costs[item]) if cost < costs[item][choice[item]]]
            choice[item] = less[int(torch.randint(len(less), (), generator=draws))]
        return tuple(choice)

    def sample(draws: torch.Generator) -> tuple[int, ...]:
        if waiting:
            return waiting.pop()
        return fit([int(torch.randint(len(options), (), generator=draws)) for options in costs], None, draws)

    def mutate(parent: tuple[int, ...], draws: torch.Generator) -> tuple[int, ...]:
        several = [i for i, options in enumerate(costs) if len(options) > 1]
        if not several:
            return parent
        item = several[int(torch.randint(len(several), (), generator=draws))]
        others = [o for o in range(len(costs[item])) if o != parent[item]]
        child = list(parent)
        child[item] = others[int(torch.randint(len(others), (), generator=draws))]
        return fit(child, item, draws)

    def named(choice: Sequence[int]) -> dict[str, Any]:
        return {name: items[name][option].name for name, option in zip(names, choice)}

    sizes = {"evaluations": evaluations, "population": population, "tournament": tournament, "seed": seed}
    found = evolve(sample, mutate, lambda choice: -float(loss(named(choice))), **sizes)
    return Allocation(named(found.best), _result(items, found.best).cost, -found.score)


def check_table(items: Table, budget: float) -> None:
    """Raises UsageError for a table or budget that cannot be right, BudgetError where nothing fits."""
    if not items:
        raise UsageError("allocate: there are no items")
    for name, options in items.items():
        if not options:
            raise UsageError(f"allocate: item {name!r} has no options")
        if len({option.name for option in options}) < len(options):
            raise UsageError(f"allocate: item {name!r} has two options of one name")
        for option in options:
            if not (math.isfinite(option.cost) and option.cost >= 0 and math.isfinite(option.loss)):
                raise UsageError(
                    f"allocate: option {option.name!r} of {name!r} has cost {option.cost} and loss {option.loss}; "
                    "a cost is finite and at least 0, a loss finite"
                )
    least = math.fsum(min(option.cost for option in options) for options in items.values())
    if not budget >= least:
        raise BudgetError(
            f"allocate: no choice keeps to a budget of {budget:g}: the cheapest options of all {len(items)} items cost {least:g}. "
            "Raise the budget or offer cheaper options"
        )


def check_counts(items: Table, at_least: Mapping[Any, int], method: str) -> None:
    """Raises UsageError for least numbers that cannot be right."""
    if method != "milp":
        raise UsageError(f"allocate: at_least is for method='milp', not {method!r}")
    for name, count in at_least.items():
        offered = sum(any(option.name == name for option in options) for options in items.values())
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= offered:
            raise UsageError(
                f"allocate: at_least {count!r} of {name!r}: a whole number; {offered} items have that option"
            )


def _result(items: Table, picked: Sequence[int]) -> Allocation:
    chosen = {name: options[index] for (name, options), index in zip(items.items(), picked)}
    return Allocation(
        {name: option.name for name, option in chosen.items()},
        math.fsum(option.cost for option in chosen.values()),
        math.fsum(option.loss for option in chosen.values()),
    )


def _by_milp(items: Table, budget: float, at_least: Mapping[Any, int]) -> list[int]:
    from scipy.optimize import Bounds, LinearConstraint, milp

    sizes = [len(options) for options in items.values()]
    ends = np.cumsum([0, *sizes])
    owner = np.zeros((len(sizes), ends[-1]))
    for row, (start, stop) in enumerate(itertools.pairwise(ends)):
        owner[row, start:stop] = 1
    cost = np.array([option.cost for options in items.values() for option in options])
    loss = np.concatenate([_from_least(options) for options in items.values()])
    unit = budget or 1.0
    constraints = [LinearConstraint(owner, 1, 1), LinearConstraint(cost / unit, -np.inf, budget / unit)]
    names = [option.name for options in items.values() for option in options]
    for name, count in at_least.items():
        constraints.append(LinearConstraint(np.array([float(own == name) for own in names]), count, np.inf))
    scaled = loss * (1e3 / (loss.max() or 1.0))
    for _ in range(CUTS):
        found = milp(
            scaled,
            constraints=constraints,
            integrality=np.ones(len(loss)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0},
        )
        if found.x is None:
            break
        picked = [int(found.x[start:stop].argmax()) for start, stop in itertools.pairwise(ends)]
        if math.fsum(cost[start + index] for start, index in zip(ends, picked)) <= budget:
            return picked
        forbidden = np.zeros(len(loss))
        forbidden[[start + index for start, index in zip(ends, picked)]] = 1
        constraints.append(LinearConstraint(forbidden, -np.inf, len(sizes) - 1))
    if at_least:
        raise BudgetError(f"allocate: no choice keeps to a budget of {budget:g} with at least {dict(at_least)} items")
    return _by_frontier(items, budget)


def _from_least(options: Sequence[Option]) -> np.ndarray:
    losses = np.array([option.loss for option in options])
    return losses - losses.min()


def _by_frontier(items: Table, budget: float) -> list[int]:
    """All (cost, loss) sums of the items so far that no other sum beats in both, within what the rest leaves over."""
    tables = [(np.array([o.cost for o in options]), _from_least(options)) for options in items.values()]
    rest = np.cumsum([0.0, *(costs.min() for costs, _ in reversed(tables))])[::-1]
    cost, loss = np.zeros(1), np.zeros(1)
    trail: list[tuple[np.ndarray, np.ndarray]] = []
    slack = 1e-12 * max(budget, 1.0)  # sums in another order
    for (own_cost, own_loss), later in zip(tables, rest[1:]):
        total = (cost[:, None] + own_cost).ravel()
        value = (loss[:, None] + own_loss).ravel()
        order = np.lexsort((value, total))
        order = order[total[order] + later <= budget + slack]
        best = np.minimum.accumulate(value[order])
        kept = order[np.concatenate([[True], best[1:] < best[:-1]])]
        cost, loss = total[kept], value[kept]
        trail.append((kept // len(own_cost), kept % len(own_cost)))
    for state in range(len(cost) - 1, -1, -1):  # the last has the least loss
        picked, at = [], state
        for before, option in reversed(trail):
            picked.append(int(option[at]))
            at = int(before[at])
        picked.reverse()
        if math.fsum(tables[i][0][o] for i, o in enumerate(picked)) <= budget:
            return picked
    return [int(costs.argmin()) for costs, _ in tables]
