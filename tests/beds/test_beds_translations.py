"""The translations bed: languages stay apart, labels come from English words, and the reference reaches what it promises."""

from dataclasses import replace

import pytest
import torch

from limbeck.beds.translations import CAPTIONS, SentencePairs, topic_of
from limbeck.datasets.load import find_folder
from limbeck.experiments.run import Run
from limbeck.experiments.store import Store

needs_data = pytest.mark.skipif(find_folder("multi30k") is None, reason="data set multi30k (make data)")
TINY = replace(
    CAPTIONS, name="tiny", vocabulary=400, length=8, count=400, held=200, labelled=40, width=16, heads=2,
    translating_steps=2, tuning_steps=2, batch_size=8,
)  # fmt: skip


def test_a_caption_has_the_topic_of_its_words_if_it_is_one():
    assert topic_of("A dog runs on the BEACH.") == "water"
    assert topic_of("A dog runs.") is None and topic_of("Playing guitar in the street") is None


def test_pairs_are_mean_states_of_the_attended_tokens():
    model = TINY.encoder(1) if find_folder("multi30k") else None
    if model is None:
        pytest.skip("data set multi30k (make data)")
    ids, mask = torch.randint(0, 300, (2, 2, 5)), torch.ones(2, 2, 5)
    mask[0, 1, 3:] = 0
    found = SentencePairs(model)(ids, mask)
    torch.testing.assert_close(found[0, 1], model.states(ids[0, 1, :3][None])[0].mean(0))
    torch.testing.assert_close(found[1, 0], model.states(ids[1, 0][None])[0].mean(0))


@needs_data
def test_the_same_captions_have_the_same_labels_in_every_language():
    english, german = (next(iter(TINY.topics(name).batches("test", 16))) for name in ("en", "de"))
    assert torch.equal(english["labels"], german["labels"]) and not torch.equal(
        english["input_ids"], german["input_ids"]
    )
    assert TINY.topics("en").size("train") == 40


@needs_data
def test_texts_are_one_language_each_and_pairs_are_of_one_caption():
    found, seen = TINY.captions(), TINY.count - TINY.held
    batch = TINY.texts(("en", "de"))._examples("train", torch.arange(seen), None)
    assert torch.equal(batch["input_ids"][0], found.ids["en"][0])
    assert torch.equal(batch["input_ids"][seen // 2], found.ids["de"][1])
    pairs = TINY.pairs(("en", "fr"))._examples("train", torch.arange(20), None)["input_ids"]
    for at, pair in enumerate(pairs):
        ends = [found.ids[name][at].tolist() for name in ("en", "fr")]
        assert sorted(pair.tolist()) == sorted(ends)


@needs_data
def test_the_reference_runs_and_the_encoder_is_shared(tmp_path):
    first, second = (TINY.reference(Run(0, "validation", Store(tmp_path))) for _ in range(2))
    assert first == second and {"accuracy", "other", "accuracy in rot13 fr"} <= set(first)
    assert len({bed.digest() for bed in (TINY, replace(TINY, length=9))}) == 2


@needs_data
@pytest.mark.slow
def test_the_reference_reaches_what_it_promises():
    found = CAPTIONS.reference(Run(0, "test"))
    for metric, (low, high) in CAPTIONS.expects.items():
        assert low <= found[metric] <= high, (metric, found[metric])
