"""MI-alpha against plain sums, its two known ends, and a pair of variables whose information is known."""

import math

import pytest
import torch

from limbeck.errors import UsageError
from limbeck.objectives import MutualInformation
from limbeck.objectives.contrastive.information import interpolated_bound, leave_one_out_log_means, perceptron
from limbeck.signals import Signals


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(f, log_q, alpha, w):
    """The formula, term by term."""
    n = len(f)
    loo = [[math.log(sum(math.exp(f[i][k]) for k in range(n) if k != j) / (n - 1)) for j in range(n)] for i in range(n)]
    b = [[math.log(alpha * math.exp(loo[i][j]) + (1 - alpha) * math.exp(log_q[i])) for j in range(n)] for i in range(n)]
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    total = sum(w[i] for i, _ in pairs)
    joint = sum(w[i] * (f[i][i] - b[i][j]) for i, j in pairs) / total
    marginal = sum(w[i] * math.exp(f[i][j] - b[i][i]) for i, j in pairs) / total
    return 1 + joint - marginal


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_value_and_gradient_equal_plain_sums(alpha):
    f, q, w = draw(4, 4), draw(4, seed=1), torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    scores = f.clone().requires_grad_()
    bound = interpolated_bound(scores, q, alpha, w)
    assert bound.item() == pytest.approx(plain(f.tolist(), q.tolist(), alpha, w.tolist()), rel=1e-10)
    bound.backward()
    for at in ((0, 0), (1, 3), (2, 1)):
        ends = []
        for sign in (1, -1):
            moved = f.clone()
            moved[at] += sign * 1e-6
            ends.append(plain(moved.tolist(), q.tolist(), alpha, w.tolist()))
        assert scores.grad[at].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-8)


def test_leave_one_out_is_exact_where_one_score_towers_over_the_rest():
    f = torch.tensor([[500.0, 0, 0], [0, 0, -500.0], [1, 2, 3]], dtype=torch.float64)
    m = leave_one_out_log_means(f)
    assert m[0, 0] == pytest.approx(0.0) and m[0, 1] == pytest.approx(500 - math.log(2))
    assert m[2, 2] == pytest.approx(math.log((math.e + math.e**2) / 2))


def test_the_ends_are_the_bounds_they_are_named_after():
    f, q = draw(5, 5), draw(5, seed=1)
    off = ~torch.eye(5, dtype=torch.bool)
    tuba = 1 + (f.diagonal() - q).mean() - (f - q[:, None])[off].exp().mean()
    torch.testing.assert_close(interpolated_bound(f, q, 0.0), tuba)
    in_batch = interpolated_bound(f, q, 1.0)
    assert float(in_batch) == float(interpolated_bound(f, q + 100, 1.0))  # no learned baseline
    # the marginal term of the in-batch baseline is 1, so that 1 cancels
    others = torch.stack([f[i, torch.arange(5) != j].logsumexp(0) - math.log(4) for i in range(5) for j in range(5)])
    torch.testing.assert_close(in_batch, (f.diagonal()[:, None] - others.view(5, 5))[off].mean())


def test_training_the_critic_finds_the_information_of_two_gaussians():
    torch.manual_seed(0)
    correlation, size = 0.8, 2
    truth = -size / 2 * math.log(1 - correlation**2)
    objective = MutualInformation("a", "b", alpha=0.5, hidden=32, embedding=8)

    def pairs(n):
        x = torch.randn(n, size)
        return x, correlation * x + math.sqrt(1 - correlation**2) * torch.randn(n, size)

    x, y = pairs(8)
    made = objective.connectors(Signals({"a": x}), Signals({"b": y}))
    optimizer = torch.optim.Adam([p for m in made.values() for p in m.parameters()], 3e-3)
    for _ in range(200):
        x, y = pairs(64)
        loss = objective(Signals({"a": x}), Signals({"b": y}), {}, made).value
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    with torch.no_grad():
        found = [-objective(Signals({"a": x}), Signals({"b": y}), {}, made).value for x, y in map(pairs, [64] * 20)]
    assert 0.6 * truth < float(torch.stack(found).mean()) < 1.1 * truth


def test_first_token_or_mean_of_the_attended():
    x, y = draw(3, 4, 5).float(), draw(3, 4, 6, seed=1).float()
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    for pooling, pooled in (
        ("first", lambda t: t[:, 0]),
        ("mean", lambda t: (t * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)),
    ):
        objective = MutualInformation("a", "b", pooling=pooling, hidden=8, embedding=4)
        made = objective.connectors(Signals({"a": x}), Signals({"b": y}))
        long = objective(Signals({"a": x}), Signals({"b": y}), {"attention_mask": mask}, made).value
        short = objective(Signals({"a": pooled(x)}), Signals({"b": pooled(y)}), {}, made).value
        torch.testing.assert_close(long, short)


def test_refusals():
    assert perceptron(3, 4, 2)(torch.zeros(5, 3)).shape == (5, 2)
    for wrong in (-0.1, 1.1, True, "1"):
        with pytest.raises(UsageError, match="alpha"):
            MutualInformation(alpha=wrong)
    with pytest.raises(UsageError, match="pooling"):
        MutualInformation(pooling="last")
    with pytest.raises(UsageError, match="hidden=0"):
        MutualInformation(hidden=0)
    signals = Signals({"logits": torch.zeros(2, 3)})
    with pytest.raises(UsageError, match="at least 3 examples"):
        MutualInformation().connectors(signals, signals)
    signals = Signals({"logits": torch.zeros(4, 3)})
    with pytest.raises(UsageError, match="needs its critic"):
        MutualInformation()(signals, signals, {})
