import pytest
import torch

from limbeck.beds.recall import RECALL, Recall, recall_sequences
from limbeck.errors import UsageError
from limbeck.experiments import Run, Store

TINY = Recall(pairs=2, queries=3, vocabulary=8, examples=256, depth=1, width=8, heads=1, steps=3)


def test_every_label_is_the_value_that_followed_the_key():
    ids, labels = recall_sequences(50, 4, 6, 16, 0)
    assert ids.shape == labels.shape == (50, 14)
    assert (labels[:, :8] == -100).all()
    for row, answers in zip(ids.tolist(), labels.tolist()):
        memory = dict(zip(row[:8:2], row[1:8:2]))
        assert len(memory) == 4 and max(memory) < 8 <= min(memory.values())
        assert [memory[query] for query in row[8:]] == answers[8:]
    assert torch.equal(ids, recall_sequences(50, 4, 6, 16, 0)[0])
    assert not torch.equal(ids, recall_sequences(50, 4, 6, 16, 1)[0])


def test_the_reference_runs_and_is_kept(tmp_path):
    run = Run(0, "validation", Store(tmp_path))
    found = TINY.reference(run)
    assert set(found) == {"accuracy", "loss", "state_accuracy"} and 0 <= found["accuracy"] <= 1
    assert run.costs["steps"] == 3 and TINY.reference(run) == found
    assert [row["hit"] for row in run.store.used] == [False, True], "the GPT is trained once"
    assert TINY.digest() != Recall().digest() and TINY.task.digest() != Recall().task.digest()


def test_students_follow_from_the_seed():
    run = Run(3, "validation")
    first, again, other = (
        TINY.student(run, state=2),
        TINY.student(run, state=2),
        TINY.student(Run(4, "validation"), state=2),
    )
    assert torch.equal(first.head.weight, again.head.weight) and not torch.equal(first.head.weight, other.head.weight)
    assert type(first.blocks[0].attention).__name__ == "StateSpaceMixer" and first.blocks[0].attention.state == 2
    assert type(TINY.student(run).blocks[0].attention).__name__ == "Attention"


def test_bad_sizes():
    with pytest.raises(UsageError, match="at most vocabulary / 2 = 4 pairs"):
        Recall(pairs=5, vocabulary=8)


@pytest.mark.slow
def test_the_reference_reaches_what_the_bed_says(tmp_path):
    found = RECALL.reference(Run(0, "test", Store(tmp_path)))
    for name, (low, high) in RECALL.expects.items():
        assert low <= found[name] <= high
