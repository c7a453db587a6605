"""Digits as sentences: the cut, the sentences and the measure by hand; what the reference reaches."""

import math

import pytest
import torch

from limbeck.beds.visual_tokens import CLASSES, DIGIT_TOKENS, VisualTokens, patches, perplexity, sentence
from limbeck.datasets.load import find_folder
from limbeck.experiments import Run


def test_patches_are_squares_in_reading_order():
    images = torch.arange(2 * 8 * 12, dtype=torch.float32).view(2, 1, 8, 12)
    found = patches(images)
    assert found.shape == (2, 6, 16)
    for n in range(2):
        for i in range(6):
            row, column = divmod(i, 3)
            square = images[n, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert torch.equal(found[n, i], square.flatten())


def test_a_sentence_begins_with_the_class_and_predicts_every_code():
    codes, labels = torch.tensor([[3, 1, 2], [0, 0, 5]]), torch.tensor([9, 4])
    made = sentence(codes, labels, 6)
    assert made["input_ids"].tolist() == [[15, 3, 1], [10, 0, 0]] and torch.equal(made["labels"], codes)


def test_perplexity_is_that_of_every_code():
    logits, labels = torch.randn(2, 3, 6), torch.tensor([[3, 1, 2], [0, 0, 5]])
    p = logits.softmax(-1)
    expected = math.exp(-sum(float(p[n, i, labels[n, i]].log()) for n in range(2) for i in range(3)) / 6)
    assert perplexity(logits, labels) == pytest.approx(expected, rel=1e-5)


def test_models_know_the_codes_and_the_classes():
    model = VisualTokens(vocabulary=20).model(width=16)
    assert model.head.out_features == 20 + CLASSES and model.positions.num_embeddings == 49


@pytest.mark.slow
def test_the_reference_reaches_what_is_expected():
    if find_folder("mnist") is None:
        pytest.skip("the data set mnist is not here (make data)")
    task = DIGIT_TOKENS.task
    batch = next(task.batches("train", 8))
    assert batch["input_ids"].shape == (8, 49) and int(batch["labels"].max()) < 64
    found = DIGIT_TOKENS.reference(Run(0, "test"))["perplexity"]
    low, high = DIGIT_TOKENS.expects["perplexity"]
    assert low <= found <= high
