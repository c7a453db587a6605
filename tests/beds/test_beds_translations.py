"""The translations bed: languages stay apart, labels come from English words, and the reference reaches what it promises."""

import math
from dataclasses import replace

import pytest
import torch

from limbeck.beds.translations import CAPTIONS, content_words, hits, topic_of, word_loss
from limbeck.datasets.load import find_folder
from limbeck.experiments.run import Run
from limbeck.experiments.store import Store

needs_data = pytest.mark.skipif(find_folder("multi30k") is None, reason="data set multi30k (make data)")
TINY = replace(
    CAPTIONS, name="tiny", vocabulary=400, words=20, length=8, count=400, held=200, labelled=40, width=16, heads=2,
    bare_steps=2, translating_steps=2, tuning_steps=2, batch_size=8,
)  # fmt: skip


def test_a_caption_has_the_topic_of_its_words_if_it_is_one():
    assert topic_of("A dog runs on the BEACH.") == "water"
    assert topic_of("A dog runs.") is None and topic_of("Playing guitar in the street") is None


def test_content_words_are_the_most_frequent_long_ones():
    assert content_words(["the dogs swim", "Dogs dogs, boys", "boys swim with boys"], 3) == ["boys", "dogs", "swim"]


def test_words_are_told_by_their_own_logits():
    labels = torch.tensor([[1.0, 0, 0, 1, 1], [0, 0, 1, 0, 0]])
    logits = torch.tensor([[3.0, -1, -2, 2, 1], [0, 3, 2, 1, -1]])
    assert hits(logits, labels) == pytest.approx(4 / 6)
    terms = [math.log1p(math.exp(-z if y else z)) for z, y in zip(logits.flatten().tolist(), labels.flatten().tolist())]
    assert word_loss(logits, labels).item() == pytest.approx(sum(terms) / 2, rel=1e-5)


@needs_data
def test_the_same_captions_have_the_same_labels_in_every_language():
    english, german = (next(iter(TINY.topics(name).batches("test", 16))) for name in ("en", "de"))
    assert torch.equal(english["labels"], german["labels"]) and not torch.equal(
        english["input_ids"], german["input_ids"]
    )
    assert TINY.topics("en").size("train") == 40


@needs_data
def test_texts_are_one_language_each_and_translations_tell_english_words():
    found, seen = TINY.captions(), TINY.count - TINY.held
    batch = TINY.texts(("en", "de"))._examples("train", torch.arange(seen), None)
    assert torch.equal(batch["input_ids"][0], found.ids["en"][0])
    assert torch.equal(batch["input_ids"][seen // 2], found.ids["de"][1])
    told = TINY.translations(("en", "de"))._examples("train", torch.arange(seen), None)
    assert torch.equal(told["input_ids"], batch["input_ids"])
    assert torch.equal(told["labels"][seen // 2], found.words[1]) and found.words.shape == (400, 20)


@needs_data
def test_aligning_keeps_the_head_of_the_task_and_moves_the_rest(tmp_path):
    model = TINY.encoder(1)
    head, query = model.head, model.blocks[0].attention.query.weight.detach().clone()
    run, tokens = Run(0, "validation", Store(tmp_path)), model.tokens.weight.detach().clone()
    TINY.aligned(run, model, ("en", "de"), 2, 0)
    assert model.head is head and not torch.equal(model.tokens.weight, tokens)
    assert torch.equal(model.blocks[0].attention.query.weight, query) and run.costs["samples"] == 2 * 128
    TINY.aligned(run, model, ("en", "de"), 0, 2)
    assert model.head is head and not torch.equal(model.blocks[0].attention.query.weight, query)


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
