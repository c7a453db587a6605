"""The paper file of self-distillation for further pre-training: its arms run, and its step is the paper's."""

from dataclasses import replace

import pytest
import torch
from arms import assert_alike, run_arms
from torch.nn import functional as F

from limbeck.datasets.load import find_folder
from limbeck.experiments import Run, Store
from limbeck.papers.self_distillation_for_further_pre_training import GENERAL, TARGET, further, matched, paper

pytestmark = pytest.mark.skipif(find_folder("udhr") is None, reason="the data set is not on this machine")
SMALL = {"width": 8, "heads": 2, "pretraining": 2, "labelled": 64}
TINY = {"general": replace(GENERAL, **SMALL), "target": replace(TARGET, **SMALL)}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), **TINY, steps=2, tuning=2)


def test_every_arm_runs_and_the_rivals_spend_alike(results):
    assert_alike(paper, results, "parameters", "tuning")
    assert {name: run.costs["steps"] for name, (_, run) in results.items()} == {
        "method": 6, "baseline": 6, "control": 2, "teacher": 4,
    }  # fmt: skip
    assert results["control"][0]["distance"] == 0 < min(results[name][0]["distance"] for name in ("method", "baseline"))


def test_the_step_is_masked_tokens_and_the_squared_distance_of_whole_texts(tmp_path):
    run, bed = Run(0, "validation", Store(tmp_path)), TINY["target"]
    model, teacher = (bed.masked_model(bed.encoder()).eval() for _ in range(2))
    batch = next(bed.masked().batches("train", 16))
    found = matched(model, teacher, bed).step(batch, None)["main"].value
    logits = model(batch["input_ids"], batch["attention_mask"], batch["masked"])
    masked = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    whole = next(bed.task().batches("train", 16))
    seen = [_mean_state(m.encoder, whole) for m in (model, teacher)]
    expected = masked + (seen[0] - seen[1]).square().sum() / 16
    torch.testing.assert_close(found, expected)
    parameters = list(model.parameters())
    for a, b in zip(*(torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (found, expected))):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert not run.costs


def _mean_state(encoder, batch):
    states = encoder.states(batch["input_ids"], batch["attention_mask"])
    return torch.stack([row[: int(mask.sum())].mean(0) for row, mask in zip(states, batch["attention_mask"])])


def test_the_copy_begins_where_its_teacher_began(tmp_path):
    how = {**TINY, "tuning": 1, "learning_rate": 1e-9}
    found = further(Run(0, "validation", Store(tmp_path)), 2, matching=True, steps=2, **how)
    assert found["distance"] < 1e-5
