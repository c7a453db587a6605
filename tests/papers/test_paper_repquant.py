"""RepQuant's paper file: outliers change no answer, the arms run, store the same and are what the paper says."""

from dataclasses import replace

import pytest
import torch
from arms import run_arms

from limbeck.beds.patches import PATCHES
from limbeck.experiments import Run, Store
from limbeck.papers.repquant import paper, with_outliers

TINY = replace(PATCHES, name="tiny", train=200, validation=100, test=100, teacher=(1, 16), supervised_steps=3)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY)


def test_every_quantized_arm_stores_the_same(results):
    assert {run.costs["bytes"] for name, (_, run) in results.items() if name != "float"} == {1536}
    assert results["float"][1].costs["bytes"] == 0


def test_the_arms_differ(results):
    assert len({found["loss"] for found, _ in results.values()}) >= 6


def test_outliers_change_the_channels_and_no_answer(tmp_path):
    run = Run(0, "validation", Store(tmp_path))
    model = TINY.network(1, 16).eval()
    x = torch.randn(4, 1, 12, 12)
    changed = with_outliers(run, model, 1.0)
    with torch.no_grad():
        torch.testing.assert_close(changed(x), model(x), rtol=1e-4, atol=1e-5)
    ratio = model.blocks[0].norm1.weight / changed.blocks[0].norm1.weight
    assert ratio.max() / ratio.min() > 5
