"""BiStil's paper file: its arms run and spend alike, students are what is said, and phase 2 moves what it may."""

from dataclasses import replace

import pytest
import torch
from arms import assert_alike, run_arms

from limbeck.beds.translations import CAPTIONS
from limbeck.datasets.load import find_folder
from limbeck.experiments.run import Run
from limbeck.experiments.store import Store
from limbeck.objectives import CrossEntropy
from limbeck.papers.bistil import imitation, paper, sparsely, thinned, trimmed
from limbeck.training import weights_of

pytestmark = pytest.mark.skipif(find_folder("multi30k") is None, reason="data set multi30k (make data)")
TINY = replace(
    CAPTIONS, name="tiny", vocabulary=400, words=20, length=8, count=400, held=200, labelled=40, width=16, heads=2,
    bare_steps=2, translating_steps=2, tuning_steps=5, batch_size=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY, steps=2)


def test_every_arm_runs_and_spends_alike(results):
    assert_alike(paper, results)
    assert {run.costs["steps"] for _, run in results.values()} == {7}
    assert all(0 < found["size"] < 0.7 for found, _ in results.values())


def test_the_student_reads_both_languages_with_every_second_layer(tmp_path):
    teacher = TINY.multilingual(Run(0, "validation", Store(tmp_path)))
    student = trimmed(TINY, thinned(TINY, teacher))
    assert len(student.blocks) == 2
    assert torch.equal(student.blocks[1].attention.query.weight, teacher.blocks[3].attention.query.weight)
    assert len(student.tokens.weight) < 0.9 * TINY.captions().size
    batch = next(iter(TINY.topics("de").batches("train", 4)))
    whole = thinned(TINY, teacher)
    assert torch.equal(student(batch["input_ids"]), whole(batch["input_ids"]))


def test_every_layer_imitates_the_end_of_its_share_of_the_teacher():
    found = {(term.student, term.teacher): weight for term, weight in imitation(2, 4).terms}
    ends = {("blocks.0", "blocks.1"): 1 / 3, ("blocks.1", "blocks.3"): 1 / 3, ("dropout", "dropout"): 1 / 3}
    maps = {tuple(f"{b}.attention.weights" for b in pair): 1 / 2 for pair in ends if pair[0] != "dropout"}
    assert found == ends | maps


def test_sparse_tuning_moves_the_head_and_a_share_of_the_rest(tmp_path):
    run = Run(0, "validation", Store(tmp_path))
    model = TINY.encoder(2)
    before = weights_of(model)
    sparsely(run, TINY, model, CrossEntropy(), share=0.1)
    moved = {name: int((value != before[name]).sum()) for name, value in model.named_parameters()}
    free = sum(
        v.numel() for n, v in model.named_parameters() if "norm" not in n and not n.startswith(("head", "tokens"))
    )
    assert not any(count for name, count in moved.items() if "norm" in name or name.startswith("tokens"))
    assert moved["head.weight"] == model.head.weight.numel()
    assert 0 < sum(c for n, c in moved.items() if not n.startswith("head")) <= round(0.1 * free)
