"""UNIP's paper file: its arms run, spend alike, and the layer is chosen by its information."""

import pytest
import torch
from arms import assert_alike, run_arms, tiny_patches

from limbeck.beds.patches import NEGATIVES
from limbeck.experiments.run import Run
from limbeck.experiments.store import Store
from limbeck.papers.unip import attention, hybrid_layer, paper

TINY = tiny_patches(NEGATIVES, patch=4, teacher=(3, 16), student=(1, 8))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY, steps=2)


def test_every_arm_runs_and_spends_alike(results):
    assert_alike(paper, results)
    assert {run.costs["steps"] for _, run in results.values()} == {4}
    assert {name for name, (_, run) in results.items() if not run.store.used} == {"control"}


def test_the_layer_of_hybrid_attention_is_chosen(tmp_path):
    """Layer 0 looks at itself, layer 1 everywhere, layer 2 at itself a little."""
    run, teacher = Run(0, "validation", Store(tmp_path)), TINY.network(3, 16)
    with torch.no_grad():
        for block, scale in zip(teacher.blocks, (8.0, 0.0, 0.8)):
            block.attention.key.load_state_dict(block.attention.query.state_dict())
            for layer in (block.attention.query, block.attention.key):
                layer.weight.copy_(scale * torch.eye(16))
    found = hybrid_layer(run, TINY, teacher)
    assert found == 2, run.notes
    assert run.notes[0].startswith("layer 2; information by layer: ")


def test_the_objective_compares_queries_with_keys():
    assert attention(0, 2, 4).reads.teacher == {"blocks.2.attention.query", "blocks.2.attention.key"}
