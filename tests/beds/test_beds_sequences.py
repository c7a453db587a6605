import dataclasses
import math

import pytest
import torch

from limbeck.beds.sequences import CONTINUATION, LANGUAGE, LANGUAGES, SPANS, SequenceBed
from limbeck.datasets.load import find_folder, load
from limbeck.errors import UsageError
from limbeck.experiments import Run, Store

needs_data = pytest.mark.skipif(find_folder("tinyshakespeare") is None, reason="the data set is not on this machine")


@needs_data
@pytest.mark.parametrize("kind", ["spans", "continuation"])
def test_a_reference_trains_and_is_measured(kind, tmp_path):
    bed = SequenceBed(kind, source=24, target=8, batch_size=4, steps=2)
    run = Run(0, "validation", Store(tmp_path))
    model = bed.student(run, encoder_depth=1, decoder_depth=1, width=8, heads=1)
    found = bed.measure(run, bed.fit(run, model, steps=2), limit=64)
    assert all(math.isfinite(value) for value in found.values()) and run.costs == {"steps": 2, "samples": 8}
    assert bed.digest() != dataclasses.replace(bed, target=12).digest()


@needs_data
def test_the_tokens_are_those_of_running_text():
    bed = SequenceBed("continuation", source=24, target=8)
    batch = next(bed.task.batches("train", 2))
    assert batch["input_ids"].shape == (2, 24) and "attention_mask" not in batch
    assert (batch["labels"][0, :-1] == batch["decoder_input_ids"][0, 1:]).all()
    assert bed.task.vocabulary_size + 4 == SequenceBed("spans", source=24, target=8).task.vocabulary_size


@pytest.mark.skipif(find_folder("udhr") is None, reason="the data set is not on this machine")
def test_languages_are_windows_of_bytes_and_a_label(tmp_path):
    bed = SequenceBed("languages", source=64, target=1, batch_size=4, embeddings=0.5)
    batch = next(bed.task.batches("validation", 8))
    assert batch["input_ids"].shape == (8, 64) == (8, bed.longest) and "attention_mask" not in batch
    assert (batch["decoder_input_ids"] == 256).all() and batch["labels"].shape == (8, 1)
    lines = {code: [] for code in LANGUAGES}
    for code, line in zip(load("udhr")["validation"]["iso639-3"], load("udhr")["validation"]["sentence"]):
        lines.get(code, []).append(line.encode())
    for window, label in zip(batch["input_ids"].tolist(), batch["labels"][:, 0].tolist()):
        assert any(bytes(window) in line for line in lines[LANGUAGES[label - 257]])
    assert len(set(LANGUAGES)) == 32 and set(bed.task._data["test"][1].flatten().tolist()) == set(range(257, 289))
    assert bed.name == "languages-udhr" and bed.collections() == ("udhr",)
    model = bed.student(Run(0, store=Store(tmp_path)), encoder_depth=1, decoder_depth=1, width=64, heads=1)
    assert model.head.weight is model.tokens.weight and model.head.weight.std().item() == pytest.approx(0.5, abs=0.02)
    assert model.encoder[0].feed_forward.down.weight.std().item() == pytest.approx(1 / 16, abs=0.005)


@needs_data
def test_the_loss_with_the_wrong_source(tmp_path):
    bed, run = SequenceBed("continuation", source=24, target=8), Run(0, "validation", Store(tmp_path))

    class Reads(torch.nn.Module):
        """The likelier target is the source's first token."""

        def forward(self, input_ids, decoder_input_ids):
            logits = torch.zeros(*decoder_input_ids.shape, bed.task.vocabulary_size)
            return logits.scatter(2, input_ids[:, :1, None].expand(-1, logits.shape[1], 1), 5.0)

    batch = next(bed.task.batches("validation", 64, limit=64))
    logits = Reads()(batch["input_ids"].roll(32, 0), batch["decoder_input_ids"])
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    assert bed.without_source(run, Reads(), limit=64) == pytest.approx(expected.item(), rel=1e-5)


def test_nonsense_is_refused():
    for settings, words in (
        ({"kind": "languages"}, "target=16"),
        ({"kind": "poem"}, "kind='poem'"),
        ({"kind": "spans", "target": 10}, "target=10"),
    ):
        with pytest.raises(UsageError, match=words):
            SequenceBed(**settings)


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("bed", [SPANS, CONTINUATION, LANGUAGE], ids=lambda bed: bed.kind)
def test_the_reference_reaches_what_the_bed_says(bed, tmp_path):
    low, high = bed.expects["loss"]
    assert low <= bed.reference(Run(0, "test", Store(tmp_path)))["loss"] <= high
