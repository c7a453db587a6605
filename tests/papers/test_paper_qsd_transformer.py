"""The paper file of the quantized spike-driven transformer: its arms run, spend alike, and are what the paper says."""

from arms import assert_alike, run_arms, tiny_patches

from limbeck.beds.patches import UNIT_PATCHES
from limbeck.papers.qsd_transformer import objective, paper


def test_every_arm_runs_and_spends_alike(tmp_path):
    results = run_arms(paper, tmp_path, steps=2, teaching=2, bed=tiny_patches(UNIT_PATCHES))
    assert_alike(paper, results)
    for found, _ in results.values():
        assert 0 <= found["spike_bits"] <= 2.33 and 0 <= found["spikes"] <= 4


def test_the_loss_relates_queries_keys_values_and_both():
    terms = objective(4, 0.5).terms
    assert len(terms) == 1 + 3 * 4 and sum(weight for _, weight in terms[1:]) == 6.0
    pairs = {(term.student[0].rpartition(".")[2], term.student[1].rpartition(".")[2]) for term, _ in terms[1:]}
    assert pairs == {(n, n) for n in ("query_spike", "key_spike", "value_spike")} | {("query_spike", "key_spike")}
    assert not objective(4, 0.0).reads.teacher
