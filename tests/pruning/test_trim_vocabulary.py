"""Trimmed vocabularies: kept tokens read as before, others as the unknown one, and what is kept is what is used."""

import pytest
import torch
from torch import nn

from limbeck.errors import ArtifactError, UsageError
from limbeck.models import encoder
from limbeck.plan import Plan, apply
from limbeck.pruning import TrimmedEmbedding, TrimVocabulary, token_shares


class Texts:
    """Three train batches of tokens 5 to 9, padded with 0; token 9 comes once in 13."""

    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 0]])

    def example(self, batch_size=1):
        return {"input_ids": self.ids[:1]}

    def batches(self, split, batch_size, **_):
        assert split == "train"
        yield {"input_ids": self.ids, "attention_mask": (self.ids != 0).long()}
        yield {"input_ids": torch.tensor([[5, 6, 7, 8, 8, 9]])}


def model(seed=0):
    torch.manual_seed(seed)
    return encoder(30, 2, 8, 1, 16, 2).eval()


def test_shares_are_of_attended_tokens():
    shares = token_shares(Texts().batches("train", 2), 30)
    assert shares[5] == pytest.approx(3 / 13) and shares[9] == pytest.approx(1 / 13)
    assert shares[0] == 0 and shares.sum() == pytest.approx(1)


def test_what_is_used_is_kept():
    assert TrimVocabulary().plan(model(), Texts()).decisions["kept"] == [0, 5, 6, 7, 8, 9]
    plan = TrimVocabulary(least=0.1, always=(2, 3), unknown=3).plan(model(), Texts())
    assert plan.decisions == {"path": "tokens", "kept": [2, 3, 5, 6, 7, 8], "vocabulary": 30, "unknown": 3}


def test_kept_tokens_read_as_before_and_others_as_unknown():
    whole, small = model(), model()
    plan = TrimVocabulary((20, 3, 7), always=(4,)).plan(small)
    assert isinstance(small.tokens, nn.Embedding)
    apply(small, plan)
    ids = torch.tensor([[7, 3, 20, 4], [7, 7, 4, 3]])
    assert torch.equal(small(ids), whole(ids))
    assert torch.equal(small(torch.tensor([[7, 11, 29]])), whole(torch.tensor([[7, 4, 4]])))
    assert small.tokens.weight.shape == (4, 16) and small.tokens.num_embeddings == 30
    rows = whole.tokens.weight[[3, 4, 7, 20]]
    assert torch.equal(small.tokens.weight, rows)


def test_gradients_reach_the_rows_that_were_read():
    table = TrimmedEmbedding([1, 4, 6], 8, 2, unknown=1)
    nn.init.zeros_(table.weight)
    table(torch.tensor([[6, 6], [0, 4]])).sum().backward()
    assert table.weight.grad[:, 0].tolist() == [1.0, 1.0, 2.0]


def test_refusals():
    for tokens in ([-1], [True], [1.5]):
        with pytest.raises(UsageError, match="token numbers"):
            TrimVocabulary(tokens)
    with pytest.raises(UsageError, match="at least one"):
        TrimVocabulary(always=())
    with pytest.raises(UsageError, match="least"):
        TrimVocabulary(least=1.0)
    with pytest.raises(UsageError, match="outside"):
        TrimVocabulary((30,)).plan(model())
    with pytest.raises(UsageError, match="unknown"):
        TrimVocabulary((1, 2), unknown=9).plan(model())
    with pytest.raises(UsageError, match="pass the task"):
        TrimVocabulary().plan(model())
    with pytest.raises(UsageError, match="no embedding"):
        TrimVocabulary((1,)).plan(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="no embedding"):
        TrimVocabulary((1,), path="words").plan(model())
    tied = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False))
    tied[1].weight = tied[0].weight
    with pytest.raises(UsageError, match="shares its weight"):
        TrimVocabulary((1,)).plan(tied)


def test_a_plan_for_another_vocabulary_is_refused():
    plan = TrimVocabulary((1, 2)).plan(model())
    with pytest.raises(ArtifactError, match="30 tokens"):
        apply(encoder(31, 2, 8, 1, 16, 2), plan)
    with pytest.raises(ArtifactError, match="lacks"):
        apply(model(), Plan(plan.kind, {**plan.decisions, "path": "words"}))
