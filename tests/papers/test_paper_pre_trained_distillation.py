"""Pre-trained Distillation's paper file: its arms run, spend alike, and begin where they should."""

from dataclasses import replace

import pytest
import torch
from arms import assert_alike, run_arms

from limbeck.beds.text import LANGUAGE_WINDOWS
from limbeck.datasets.load import find_folder
from limbeck.experiments import Run, Store
from limbeck.papers.pre_trained_distillation import paper, student

pytestmark = pytest.mark.skipif(find_folder("udhr") is None, reason="the data set is not on this machine")
TINY = replace(LANGUAGE_WINDOWS, depth=2, width=8, heads=2, labelled=64, steps=2, pretraining=2)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY, steps=2)


def test_every_arm_runs_and_spends_alike(results):
    assert_alike(paper, results)
    assert {run.costs["steps"] for _, run in results.values()} == {2}


def test_only_distilled_arms_ask_the_teacher_and_only_pre_trained_ones_read_before(results):
    entries = {name: len(run.store.used) for name, (_, run) in results.items()}
    assert entries["labels"] == 0 and entries["control"] == 1  # the student's own pre-trained weights
    assert entries["baseline"] == entries["small"] < entries["method"]


def test_students_begin_where_the_arm_says(tmp_path):
    run = Run(3, "validation", Store(tmp_path))
    begun = {start: student(run, start, TINY).state_dict() for start in ("nothing", "masked", "truncated")}
    assert all(len({name.split(".")[1] for name in s if name.startswith("blocks")}) == 1 for s in begun.values())
    sources = {"masked": replace(TINY, depth=1).pretrained(run, seed=3), "truncated": TINY.pretrained(run)}
    for start, source in sources.items():
        found = source.state_dict()
        assert all(torch.equal(v, found[name]) for name, v in begun[start].items() if not name.startswith("head"))
        assert torch.equal(begun[start]["head.weight"], begun["nothing"]["head.weight"])
    name = "blocks.0.attention.query.weight"
    assert len({state[name].sum().item() for state in begun.values()}) == 3
