"""What the tests of papers share: every arm once, on a bed made tiny."""

import math

from limbeck.experiments.run import Run
from limbeck.experiments.store import Store


def run_arms(paper, folder, **changes):
    """Arm name to (metrics, run), each arm with its first settings, seed 0, on the validation split."""
    found = {}
    for name, arm in paper.arms.items():
        run = Run(0, "validation", Store(folder))
        found[name] = arm.run(run, **{**arm.candidates()[0], **changes}), run
    return found


def spend_alike(paper, results) -> None:
    """Every arm gives finite metrics that the comparisons name, and costs that must be equal are."""
    assert all(math.isfinite(value) for found, _ in results.values() for value in found.values())
    assert all(row.metric in results[side][0] for row in paper.compared for side in (row.method, row.against))
    for cost in paper.miniature.equal:
        assert len({run.costs[cost] for _, run in results.values()}) == 1, cost


def taught(results) -> set[str]:
    """The arms that took something, a teacher say, from the store."""
    return {name for name, (_, run) in results.items() if run.store.used}
