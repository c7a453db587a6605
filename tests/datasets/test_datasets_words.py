"""Replaced words: the shares, the draws, and what stays."""

import pytest
import torch

from limbeck.datasets.tokenize import train_tokenizer
from limbeck.datasets.words import checked_shares, ordinary_tokens, replace_words
from limbeck.errors import UsageError


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def test_ordinary_tokens_are_neither_special_nor_reserved():
    tokenizer = train_tokenizer(["abc ab"], "characters", framed=True)
    tokenizer.add_tokens(["[unused12]", "[used]"])
    ordinary = ordinary_tokens(tokenizer)
    named = {token for token, at in tokenizer.get_vocab().items() if ordinary[at]}
    assert named == {"a", "b", "c", " ", "[used]"} and len(ordinary) == len(tokenizer.get_vocab())


def test_as_many_tokens_are_replaced_as_the_shares_say_and_special_ones_stay():
    ordinary = torch.ones(500, dtype=torch.bool)
    ordinary[:10] = False
    ids = torch.randint(0, 500, (3, 20000), generator=draws(1))
    before = ids.clone()
    found = replace_words(ids, ordinary, torch.tensor([0.0, 0.25, 1.0]), draws())
    assert torch.equal(ids, before), "the input was changed"
    assert torch.equal(found[0], ids[0])
    assert torch.equal(found[ids < 10], ids[ids < 10])
    changed = [(found[row] != ids[row])[ids[row] >= 10].double().mean().item() for row in range(3)]
    same = 1 / 490  # a draw may hit the token that was there
    assert changed[1] == pytest.approx(0.25 * (1 - same), abs=0.012) and changed[2] == pytest.approx(
        1 - same, abs=0.002
    )


def test_draws_are_uniform_over_the_ordinary_tokens():
    ordinary = torch.tensor([False, True, True, False, True, True])
    found = replace_words(torch.full((1, 40000), 4), ordinary, torch.ones(1), draws())
    counts = torch.bincount(found[0], minlength=6).double() / 40000
    assert counts[[0, 3]].tolist() == [0, 0]
    assert torch.allclose(counts[[1, 2, 4, 5]], torch.full((4,), 0.25, dtype=torch.float64), atol=0.01)


def test_the_same_generator_gives_the_same_words():
    ids, ordinary, shares = torch.arange(60).view(2, 30), torch.ones(60, dtype=torch.bool), torch.tensor([0.5, 0.5])
    assert torch.equal(replace_words(ids, ordinary, shares, draws()), replace_words(ids, ordinary, shares, draws()))
    assert not torch.equal(
        replace_words(ids, ordinary, shares, draws()), replace_words(ids, ordinary, shares, draws(1))
    )


def test_shares_are_checked():
    assert checked_shares(0.3) == (0.3,) and checked_shares([0, 1]) == (0.0, 1.0) and checked_shares(()) == ()
    for wrong in ([1.5], [-0.1], [True], ["much"]):
        with pytest.raises(UsageError, match="shares of tokens from 0 to 1"):
            checked_shares(wrong)
