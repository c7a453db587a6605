import itertools

import pytest
import torch

from limbeck.beds.sequences import spans
from limbeck.errors import DataError, UsageError
from limbeck.objectives import CrossEntropy
from limbeck.signals import Signals
from limbeck.tasks import SequenceToSequence


def task():
    sources = torch.tensor([[3, 4, 5], [6, 7, 0], [8, 0, 0]])
    targets = torch.tensor([[4, 5], [6, 0], [7, 8]])
    return SequenceToSequence(dict.fromkeys(("train", "validation", "test"), (sources, targets)), 10, padding=0, start=1)


def test_the_decoder_reads_the_targets_one_late():
    batch = next(task().batches("train", 3))
    assert batch["decoder_input_ids"].tolist() == [[1, 4], [1, 6], [1, 7]]
    assert batch["labels"].tolist() == [[4, 5], [6, -100], [7, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]


def test_metrics_and_objective_count_target_tokens():
    made, logits = task(), torch.randn(3, 2, 10)
    batch = next(made.batches("test", 3))
    flat, labels = logits.flatten(0, 1), batch["labels"].flatten()
    expected = torch.nn.functional.cross_entropy(flat, labels, ignore_index=-100).item()
    found = made.evaluate(lambda _: logits, "test")
    assert found["loss"] == pytest.approx(expected, rel=1e-5) and found["perplexity"] == pytest.approx(
        2.718281828**expected, rel=1e-4
    )
    assert found["accuracy"] == ((flat.argmax(-1) == labels) & (labels != -100)).sum().item() / 5
    loss = CrossEntropy()(
        Signals({"logits": logits}), Signals({}), batch
    ).value  # the source's mask is not the target's
    assert loss.item() == pytest.approx(expected, rel=1e-5) and made.loss(logits, batch).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_spans_can_be_put_back():
    blocks = torch.randint(0, 50, (30, 40))
    sources, targets = spans(blocks, 3, 4, first=50, seed=1)
    assert sources.shape == (30, 31) and targets.shape == (30, 15)
    for block, source, target in zip(blocks.tolist(), sources.tolist(), targets.tolist()):
        missing = {target[i]: target[i + 1 : i + 5] for i in (0, 5, 10)}
        assert list(missing) == [50, 51, 52] and [t for t in source if t >= 50] == [50, 51, 52]
        assert [t for token in source for t in missing.get(token, [token])] == block
        assert not any(a >= 50 and b >= 50 for a, b in itertools.pairwise(source))
    assert torch.equal(spans(blocks, 3, 4, 50, 1)[0], sources) and not torch.equal(
        spans(blocks, 3, 4, 50, 2)[0], sources
    )


def test_nonsense_is_refused():
    one = torch.ones(2, 2).long()
    with pytest.raises(DataError, match="splits must be"):
        SequenceToSequence({"train": (one, one)}, 5, padding=0, start=1)
    with pytest.raises(UsageError, match="outside the vocabulary"):
        SequenceToSequence(dict.fromkeys(("train", "validation", "test"), (one * 7, one)), 5, padding=0, start=1)
    with pytest.raises(UsageError, match="do not fit"):
        spans(torch.ones(1, 10).long(), 3, 3, 5, 0)
