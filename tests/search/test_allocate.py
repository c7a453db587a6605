"""The allocator against exhaustive enumeration; evolution where losses do not add up."""

import importlib
import itertools
import math

import pytest
import scipy.optimize
import torch

from limbeck.errors import BudgetError, UsageError
from limbeck.search import Option, allocate, allocate_by_evolution


def table(seed, items=5, options=3, whole=True):
    draws = torch.Generator().manual_seed(seed)
    costs = torch.randint(1, 40, (items, options), generator=draws).double()
    if not whole:
        costs = torch.rand(items, options, generator=draws, dtype=torch.float64)
    losses = torch.randn(items, options, generator=draws, dtype=torch.float64)
    return {
        f"item{i}": [Option(2**o, float(costs[i, o]), float(losses[i, o])) for o in range(options)]
        for i in range(items)
    }


def exhaustive(items, budget, loss=None):
    best = math.inf
    for choice in itertools.product(*items.values()):
        if math.fsum(option.cost for option in choice) <= budget:
            named = {name: option.name for name, option in zip(items, choice)}
            best = min(best, loss(named) if loss else math.fsum(option.loss for option in choice))
    return best


@pytest.mark.parametrize("method", ["milp", "dynamic"])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_exact_methods_equal_enumeration(method, whole, seed):
    items = table(seed, whole=whole)
    least = sum(min(option.cost for option in options) for options in items.values())
    most = sum(max(option.cost for option in options) for options in items.values())
    for share in (0.0, 0.2, 0.5, 1.0):
        budget = least + share * (most - least) + 1e-9
        found = allocate(items, budget, method)
        assert found.cost <= budget and set(found.choice) == set(items)
        chosen = {name: next(o for o in items[name] if o.name == found.choice[name]) for name in items}
        assert found.cost == math.fsum(o.cost for o in chosen.values())
        assert found.loss == pytest.approx(exhaustive(items, budget), abs=1e-9)


def test_the_solver_knows_the_budget(monkeypatch):
    """One solution is enough: nothing is left to forbidding those above the budget, or to the frontier."""
    solver, calls = scipy.optimize.milp, []
    monkeypatch.setattr(scipy.optimize, "milp", lambda *given, **named: calls.append(1) or solver(*given, **named))
    monkeypatch.setattr(importlib.import_module("limbeck.search.allocate"), "_by_frontier", None)
    for seed in range(4):
        allocate(table(seed), 80, "milp")
    assert len(calls) == 4


@pytest.mark.parametrize("method", ["milp", "dynamic"])
def test_the_budget_is_kept_to_the_byte(method):
    """A solver's tolerance must not let a million bytes become a million and one."""
    items = {f"item{i}": [Option("small", 1, 1.0), Option("large", 250_001 - (i == 0), 0.0)] for i in range(4)}
    found = allocate(items, 1_000_002, method)
    assert found.cost <= 1_000_002 and found.loss == 1.0
    assert allocate(items, 1_000_003, method).loss == 0.0


def test_many_items_agree():
    items = table(3, items=60, options=4)
    first, second = (allocate(items, 700, method) for method in ("milp", "dynamic"))
    assert first.loss == pytest.approx(second.loss, abs=1e-6) and first.cost <= 700


def test_evolution_finds_what_does_not_add_up():
    items = table(1, items=6, whole=True)
    order = list(items)

    def loss(choice):  # neighbours that differ cost more
        return sum((math.log2(choice[a]) - math.log2(choice[b])) ** 2 for a, b in itertools.pairwise(order)) - sum(
            math.log2(value) for value in choice.values()
        )

    budget = 100
    seen = []
    found = allocate_by_evolution(items, budget, lambda c: seen.append(dict(c)) or loss(c), evaluations=400, seed=2)
    assert len(seen) == 400 and found.cost <= budget
    costs = {name: {option.name: option.cost for option in options} for name, options in items.items()}
    assert all(sum(costs[name][choice[name]] for name in items) <= budget for choice in seen)
    assert seen[0] == allocate(items, budget, "dynamic").choice
    assert found.loss == pytest.approx(exhaustive(items, budget, loss))
    again = allocate_by_evolution(items, budget, loss, evaluations=400, seed=2)
    assert again == found


@pytest.mark.parametrize("method", ["milp", "dynamic"])
def test_what_cannot_be_done_is_refused(method):
    items = table(0)
    least = sum(min(option.cost for option in options) for options in items.values())
    with pytest.raises(BudgetError, match=f"{least:g}"):
        allocate(items, least - 1, method)
    with pytest.raises(BudgetError):
        allocate(items, float("nan"), method)
    with pytest.raises(UsageError, match="no items"):
        allocate({}, 1, method)
    with pytest.raises(UsageError, match="no options"):
        allocate({"a": []}, 1, method)
    with pytest.raises(UsageError, match="one name"):
        allocate({"a": [Option(1, 1), Option(1, 2)]}, 5, method)
    with pytest.raises(UsageError, match="cost -1"):
        allocate({"a": [Option(1, -1)]}, 5, method)
    with pytest.raises(UsageError, match="method"):
        allocate(items, 100, "greedy")


@pytest.mark.parametrize("seed", range(4))
def test_least_numbers_of_an_option_equal_enumeration(seed):
    items = table(seed)
    budget = 0.6 * sum(max(option.cost for option in options) for options in items.values())
    at_least = {1: 1, 4: 2}
    fitting = [
        choice
        for choice in itertools.product(*items.values())
        if math.fsum(option.cost for option in choice) <= budget
        and all(sum(option.name == name for option in choice) >= count for name, count in at_least.items())
    ]
    if not fitting:
        with pytest.raises(BudgetError, match="with at least"):
            allocate(items, budget, at_least=at_least)
        return
    found = allocate(items, budget, at_least=at_least)
    assert found.cost <= budget
    assert found.loss == pytest.approx(min(math.fsum(option.loss for option in choice) for choice in fitting))
    names = list(found.choice.values())
    assert names.count(1) >= 1 and names.count(4) >= 2


def test_least_numbers_that_cannot_be():
    items = table(0)
    with pytest.raises(BudgetError, match="with at least"):
        allocate(items, sum(min(o.cost for o in options) for options in items.values()), at_least={4: 5})
    for bad in ({4: 6}, {7: 1}, {4: -1}, {4: 1.5}):
        with pytest.raises(UsageError, match="at_least"):
            allocate(items, 1e3, at_least=bad)
    with pytest.raises(UsageError, match="milp"):
        allocate(items, 1e3, "dynamic", at_least={4: 1})
