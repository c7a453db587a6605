import itertools
import math

import pytest
import torch
from scipy.stats import chisquare
from torch import nn

from limbeck.errors import UsageError
from limbeck.inference import acceptance, expected_acceptance, residual, speculate, speculative, verify
from limbeck.models import gpt

V, K = 3, 2
# next-token laws of a target and a draft; every p / q that is below 1 is a multiple of 1/20
P = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]], dtype=torch.float64)
Q = torch.tensor([[0.2, 0.4, 0.4], [0.5, 0.4, 0.1], [0.25, 0.5, 0.25]], dtype=torch.float64)


class Bigrams(nn.Module):
    """A language model whose next token depends on the last one by a table."""

    def __init__(self, table):
        super().__init__()
        self.table = table.log()

    def forward(self, input_ids):
        return self.table[input_ids]


def outcomes(monkeypatch, first):
    """Every (drafted tokens, accepted, law of the following token) with its probability, by going through a grid of draws."""
    grid = (torch.arange(20) + 0.5) / 20
    draws = torch.cartesian_prod(grid, grid).double()
    laws = []
    monkeypatch.setattr(speculative, "draw", lambda p, generator: laws.append(p) or p.argmax(-1))
    monkeypatch.setattr(torch, "rand", lambda shape, generator, dtype: draws)
    for drafted in itertools.product(range(V), repeat=K):
        before = (first, drafted[0])
        rows = [table.expand(len(draws), -1, -1) for table in (Q[list(before)], P[[*before, drafted[1]]])]
        accepted, _ = verify(torch.tensor([drafted]).expand(len(draws), -1), *rows)
        chance = math.prod(float(Q[a, b]) for a, b in zip(before, drafted))
        for taken, law in zip(accepted.tolist(), laws.pop()):
            yield drafted, taken, law, chance / len(draws)


@pytest.mark.parametrize("first", range(V))
def test_the_law_of_two_tokens_is_the_targets_exactly(monkeypatch, first):
    found = torch.zeros(V, V, dtype=torch.float64)
    for (one, two), taken, law, chance in outcomes(monkeypatch, first):
        if taken == 0:
            found += chance * law[:, None] * P  # the next round begins anew after the drawn token
        elif taken == 1:
            found[one] += chance * law
        else:
            found[one, two] += chance
    torch.testing.assert_close(found, P[first][:, None] * P, rtol=0, atol=1e-12)


def test_a_bonus_token_follows_the_target(monkeypatch):
    for (_, two), taken, law, _ in outcomes(monkeypatch, 0):
        if taken == K:
            torch.testing.assert_close(law, P[two])


def test_residual_and_acceptance_make_up_the_target():
    torch.testing.assert_close(torch.minimum(P, Q) + (1 - acceptance(P, Q))[:, None] * residual(P, Q), P)
    torch.testing.assert_close(acceptance(P, Q), 1 - 0.5 * (P - Q).abs().sum(-1))
    torch.testing.assert_close(residual(P, P), P)


def test_generated_text_follows_the_target():
    many, length = 20000, 3
    made = speculate(
        Bigrams(P),
        Bigrams(Q),
        torch.zeros(many, 1, dtype=torch.long),
        length,
        lookahead=K,
        generator=torch.Generator().manual_seed(0),
    )
    code = (made.tokens[:, 1:] * torch.tensor([9, 3, 1])).sum(1)
    expected = torch.stack([P[0, a] * P[a, b] * P[b, c] for a, b, c in itertools.product(range(V), repeat=length)])
    seen = torch.bincount(code, minlength=V**length)
    assert chisquare(seen, many * expected).pvalue > 0.01
    assert chisquare(seen, many * expected.flip(0)).pvalue < 1e-6


def test_the_acceptance_rate_of_one_drafted_token_is_the_overlap():
    made = speculate(
        Bigrams(P[:1].expand(V, V)), Bigrams(Q[:1].expand(V, V)), torch.zeros(4000, 1).long(), 5, lookahead=1
    )
    assert made.acceptance_rate == pytest.approx(float(acceptance(P[0], Q[0])), abs=0.02)
    assert made.block_efficiency == pytest.approx(1 + made.acceptance_rate)


def greedy(model, ids, count):
    for _ in range(count):
        ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], 1)
    return ids


@torch.no_grad()
def test_greedy_speculation_is_greedy_decoding_of_the_target():
    target, draft = (gpt(11, 32, depth=1, width=16, heads=2, tied=False).double().eval() for _ in range(2))
    for model in (target, draft):
        nn.init.normal_(model.head.weight)
    prompts = torch.randint(0, 11, (5, 4))
    made = speculate(target, draft, prompts, 13, lookahead=3, temperature=0)
    assert torch.equal(made.tokens, greedy(target, prompts, 13))
    assert made.acceptance_rate < 1


def test_a_draft_that_is_the_target_is_always_accepted():
    made = speculate(Bigrams(P), Bigrams(P), torch.zeros(3, 2).long(), 10, lookahead=4)
    assert made.acceptance_rate == 1
    assert made.block_efficiency == 5
    assert made.tokens.shape == (3, 12)


def test_expected_acceptance_is_the_mean_overlap_of_what_counts():
    ids = torch.tensor([[0, 1, 2], [2, 2, 0]])
    labels = torch.tensor([[1, 2, -100], [2, 0, 1]])
    overlaps = acceptance(P, Q)
    expected = float(overlaps[torch.tensor([0, 1, 2, 2, 0])].mean())
    found = expected_acceptance(Bigrams(P), Bigrams(Q), [{"input_ids": ids, "labels": labels}])
    assert found == pytest.approx(expected)
    assert expected_acceptance(Bigrams(P), Bigrams(P), [{"input_ids": ids}]) == pytest.approx(1)
    with pytest.raises(UsageError, match="no position"):
        expected_acceptance(Bigrams(P), Bigrams(Q), [])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"new_tokens": 0}, "new_tokens"),
        ({"lookahead": 0}, "lookahead"),
        ({"temperature": -1.0}, "temperature"),
        ({"input_ids": torch.zeros(2, 0).long()}, "input_ids"),
        ({"draft": Bigrams(torch.full((3, 4), 0.25))}, "share"),
    ],
)
def test_nonsense_is_refused(settings, named):
    usual = {"target": Bigrams(P), "draft": Bigrams(Q), "input_ids": torch.zeros(1, 1).long(), "new_tokens": 2}
    with pytest.raises(UsageError, match=named):
        speculate(**{**usual, **settings})
