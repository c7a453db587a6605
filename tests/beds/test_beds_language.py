import dataclasses

import pytest
import torch

from limbeck.beds.language import BYTE_PAIRS, CHARACTERS, WEB, WIKITEXT, LanguageBed
from limbeck.datasets.load import find_folder
from limbeck.experiments import Run, Store
from limbeck.objectives import SoftTargets

NAMED = {"characters": CHARACTERS, "byte_pairs": BYTE_PAIRS, "web": WEB, "wikitext": WIKITEXT}


@pytest.fixture
def bed(tiny_text):
    return LanguageBed(dataset=tiny_text, length=16, blocks=8, batch_size=8, teacher_steps=60)


def run_of(folder, seed=0):
    return Run(seed, "validation", Store(folder / "store"))


def test_a_teacher_is_trained_once_and_costs_no_arm_anything(bed, tmp_path):
    run = run_of(tmp_path)
    first = bed.teacher(run, depth=1, width=16)
    again = run_of(tmp_path, seed=5)
    second = bed.teacher(again, depth=1, width=16)
    assert [entry["hit"] for entry in again.store.used] == [True]
    assert torch.equal(first.head.weight, second.head.weight)
    assert run.costs == {}
    chance = bed.measure(run, bed.student(run, depth=1, width=16))["perplexity"]
    assert bed.measure(run, first)["perplexity"] < 0.5 * chance


def test_students_follow_the_seed_and_their_training_is_counted(bed, tmp_path):
    run = run_of(tmp_path, seed=3)
    one, two, other = bed.student(run), bed.student(run), bed.student(run_of(tmp_path, seed=4))
    assert torch.equal(one.head.weight, two.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)
    bed.fit(run, one, SoftTargets(temperature=1.0), two, steps=5, learning_rate=1e-3)
    assert run.costs == {"steps": 5, "samples": 40}
    assert not torch.equal(one.head.weight, two.head.weight)
    assert set(bed.measure(run, one)) == {"perplexity", "loss"}


def test_the_digest_tells_what_a_model_sees(bed):
    assert bed.digest() == dataclasses.replace(bed).digest()
    assert bed.digest() != dataclasses.replace(bed, length=8).digest()
    assert dataclasses.replace(bed, expected=(1.0, 2.0)).digest() == bed.digest()


@pytest.mark.slow
@pytest.mark.parametrize("bed", NAMED.values(), ids=NAMED)
def test_the_reference_reaches_what_is_expected(bed):
    if find_folder(bed.dataset) is None:
        pytest.skip(f"the data set {bed.dataset} is not here (make data)")
    got = bed.reference(Run(0, "test"))
    for metric, (low, high) in bed.expects.items():
        assert low <= got[metric] <= high
