import math

import pytest

from limbeck.beds.text import TextBed
from limbeck.datasets.load import find_folder
from limbeck.experiments.run import Run
from limbeck.experiments.store import Store
from limbeck.papers.minilm import distilled, masked, objectives, paper, self_attention

TINY = TextBed("sst2", vocabulary=300, length=16, labelled=96, depth=2, width=16, heads=2, steps=2)


def test_the_method_reads_queries_keys_and_values_of_the_last_layers_only():
    found = objectives(2, 4, heads=4)["relations"]
    for reads, layer in ((found.reads.student, 1), (found.reads.teacher, 3)):
        assert reads == {f"blocks.{layer}.attention.{name}" for name in ("query", "key", "value")}
    assert [(term.heads, weight) for term, weight in found.terms] == [(4, 1.0), (4, 1.0)]
    assert "blocks.1.attention.value" not in self_attention(1, 3, 4, values=False).reads.student
    assert set(paper.arms) == {"method", "baseline", "control", "attention", "assistant"}


@pytest.mark.skipif(find_folder("sst2") is None, reason="data set sst2 (make data)")
@pytest.mark.parametrize("name", ["relations", "attention", "hidden", "assistant", "masked"])
def test_arms_run_at_equal_costs(name, tmp_path):
    run = Run(0, "validation", store=Store(tmp_path))
    small = {"bed": TINY, "few": TINY, "steps": 4, "learning_rate": 1e-3}
    if name == "masked":
        found = masked(run, **small)
    else:
        found = distilled(run, "relations" if name == "assistant" else name, assistant=name == "assistant", **small)
    assert all(map(math.isfinite, found.values())) and 0 < found["accuracy"] < 1
    assert run.costs == {"steps": 6, "samples": 6 * 32}
