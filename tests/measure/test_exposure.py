import itertools
import math

import pytest
import torch

from limbeck.errors import UsageError
from limbeck.measure import continuations, exposure, mean_exposure
from limbeck.measure.exposure import bits
from limbeck.models import gpt

ALPHABET = torch.tensor([2, 5, 7])
PREFIX = torch.tensor([1, 3])


@pytest.fixture
def model():
    torch.manual_seed(3)
    made = gpt(9, 12, depth=1, width=16, heads=2, tied=False).eval()
    torch.nn.init.normal_(made.head.weight)
    return made


def naive(model, length):
    """Every whole sequence through the model, one at a time."""
    out = []
    for secret in itertools.product(ALPHABET.tolist(), repeat=length):
        ids = torch.tensor([[*PREFIX.tolist(), *secret]])
        scores = model(ids).log_softmax(-1)[0]
        places = range(len(PREFIX) - 1, ids.shape[1] - 1)
        out.append(sum(float(scores[t, ids[0, t + 1]]) for t in places))
    return torch.tensor(out)


@torch.no_grad()
def test_log_probabilities_are_those_of_whole_sequences(model):
    for size in (2, 512):
        found = continuations(model, PREFIX, ALPHABET, 3, batch_size=size)
        torch.testing.assert_close(found, naive(model, 3), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_exposure_is_that_of_the_rank_in_the_sorted_list(model):
    order = naive(model, 3).argsort(descending=True)
    secrets = list(itertools.product(ALPHABET.tolist(), repeat=3))
    for rank in (1, 4, 27):
        secret = torch.tensor(secrets[order[rank - 1]])
        assert exposure(model, PREFIX, secret, ALPHABET) == pytest.approx(math.log2(27) - math.log2(rank))
    pair = [(PREFIX, torch.tensor(secrets[order[place]])) for place in (0, 26)]
    assert mean_exposure(model, pair, ALPHABET) == pytest.approx(math.log2(27) / 2)


def test_equal_scores_share_their_ranks():
    assert bits(torch.zeros(7), 3) == pytest.approx(math.log2(7) - math.log2(4))
    assert bits(torch.tensor([3.0, 1.0, 1.0, 0.0]), 2) == pytest.approx(2 - math.log2(2.5))


def test_nonsense_is_refused(model):
    for arguments, named in (
        ((PREFIX, torch.tensor([2, 3]), ALPHABET), "alphabet"),
        ((torch.tensor([]), torch.tensor([2]), ALPHABET), "prefix"),
        ((PREFIX, torch.tensor([2]), torch.tensor([2, 2])), r"not in the alphabet|different"),
        ((PREFIX, ALPHABET.repeat(10), ALPHABET), "possible secrets"),
    ):
        with pytest.raises(UsageError, match=named):
            exposure(model, *arguments)
    with pytest.raises(UsageError, match="no canary"):
        mean_exposure(model, [], ALPHABET)
