"""AdaPT's paper file: its arms run, spend alike, and what they report is what is stored."""

from dataclasses import replace

import pytest
from arms import assert_alike, run_arms

from limbeck.beds.images import DIGITS
from limbeck.models import resnet
from limbeck.papers import adapt as module

TINY = replace(DIGITS, train=64)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WINDOW", 2)
        return run_arms(module.paper, tmp_path_factory.mktemp("store"), bed=TINY, epochs=2)


def test_every_arm_runs_and_spends_alike(results):
    assert_alike(module.paper, results, "steps", "samples")


def test_costs_are_those_of_the_words(results):
    assert {"control": 4, "eight": 8}.items() <= {name: found["word"] for name, (found, _) in results.items()}.items()
    for name, share in (("control", 4 / 32), ("eight", 8 / 32), ("baseline", 1.0)):
        found = results[name][0]
        assert found["cost"] == pytest.approx(share) and found["training_cost"] == pytest.approx(share)
    method = results["method"][0]
    assert 2 <= method["word"] <= 16 and method["training_cost"] != method["cost"]
    assert results["control"][0]["bytes"] < results["eight"][0]["bytes"] < results["baseline"][0]["bytes"] / 3


def test_operations_are_those_of_the_layers():
    found = module.operations(resnet(8, 10, 1, 4), {"pixel_values": TINY.task().example(1)["pixel_values"]})
    assert found["conv1"] == 2 * 9 * 4 * 8 * 8 and found["fc"] == 2 * 16 * 10
    assert found["layer2.0.conv1"] == 2 * 9 * 4 * 8 * 4 * 4 and len(found) == 10
