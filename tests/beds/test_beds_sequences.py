import dataclasses
import math

import pytest

from limbeck.beds.sequences import CONTINUATION, SPANS, SequenceBed
from limbeck.datasets.load import find_folder
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


def test_nonsense_is_refused():
    for settings, words in (({"kind": "poem"}, "kind='poem'"), ({"kind": "spans", "target": 10}, "target=10")):
        with pytest.raises(UsageError, match=words):
            SequenceBed(**settings)


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("bed", [SPANS, CONTINUATION], ids=["spans", "continuation"])
def test_the_reference_reaches_what_the_bed_says(bed, tmp_path):
    low, high = bed.expects["loss"]
    assert low <= bed.reference(Run(0, "test", Store(tmp_path)))["loss"] <= high
