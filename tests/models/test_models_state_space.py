import pytest
import torch

from limbeck.errors import UsageError
from limbeck.models.state_space import StateSpaceMixer, decay_matrix, recurrence, transfer_matrix
from limbeck.signals import Tap


def pieces(batch=2, length=7, heads=3, state=4, width=5):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(batch, length, heads, width, generator=draw)
    log_decay = -torch.rand(batch, length, heads, generator=draw) * 2
    b, c = (torch.randn(batch, length, heads, state, generator=draw) for _ in range(2))
    return x, log_decay, b, c, torch.randn(heads, generator=draw)


def test_the_decay_between_two_tokens_is_the_product_over_those_after_the_first():
    log_decay = torch.tensor([[[0.5, 0.25, 0.2]]]).log()
    expected = torch.tensor([[1, 0, 0], [0.25, 1, 0], [0.05, 0.2, 1]])
    torch.testing.assert_close(decay_matrix(log_decay)[0, 0], expected)


def test_the_matrix_equals_the_recurrence_with_gradients():
    made = []
    for form in ("matrix", "recurrence"):
        x, *rest = (part.requires_grad_() for part in pieces())
        if form == "matrix":
            y = (transfer_matrix(*rest) @ x.transpose(1, 2)).transpose(1, 2)
        else:
            y = recurrence(x, *rest)
        made.append([y, *torch.autograd.grad(y.square().sum(), (x, *rest))])
    for a, b in zip(*made):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_recurrence_equals_sums_by_hand():
    x, log_decay, b, c, d = pieces(length=4)
    y = recurrence(x, log_decay, b, c, d)
    for t in range(4):
        expected = d[:, None] * x[:, t]
        for s in range(t + 1):
            kept = log_decay[:, s + 1 : t + 1].sum(1).exp()
            expected = expected + (kept * (b[:, s] * c[:, t]).sum(-1))[..., None] * x[:, s]
        torch.testing.assert_close(y[:, t], expected, rtol=1e-4, atol=1e-5)


def test_without_decay_it_is_linear_attention():
    _, log_decay, b, c, d = pieces()
    scores = torch.einsum("bthn,bshn->bhts", c, b).tril()
    made = transfer_matrix(torch.zeros_like(log_decay), b, c, torch.zeros_like(d))
    torch.testing.assert_close(made, scores)


def test_a_strong_decay_forgets_without_nan():
    _, log_decay, b, c, d = pieces(length=300)
    matrix = transfer_matrix(torch.full_like(log_decay, -80.0), b, c, d)
    assert matrix.isfinite().all() and matrix.tril(-2).abs().max() < 1e-30


def test_the_mixers_decay_is_one_over_one_plus_exp():
    mixer = StateSpaceMixer(12, 3, state=4)
    u = 5 * torch.randn(2, 9, 12)
    torch.testing.assert_close(mixer.parts(u)[1].exp(), 1 / (1 + mixer.decay(u).exp()))


def test_the_mixer_sees_only_the_past_and_runs_both_ways():
    torch.manual_seed(0)
    mixer = StateSpaceMixer(12, 3, state=4)
    u = torch.randn(2, 9, 12)
    other = u.clone()
    other[:, 6:] += 1
    with Tap(mixer, {"matrix"}) as tap:
        assert tap.run(u)["matrix"].shape == (2, 3, 9, 9)
    torch.testing.assert_close(mixer(u), mixer.recurrent(u), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixer(u)[:, :6], mixer(other)[:, :6])
    assert not torch.allclose(mixer(u)[:, 6:], mixer(other)[:, 6:])
    mixer(u).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in mixer.parameters())
    half = mixer.bfloat16()(u.bfloat16())
    assert half.dtype == torch.bfloat16


def test_nonsense_is_refused():
    with pytest.raises(UsageError, match="heads must divide width"):
        StateSpaceMixer(10, 3)
    with pytest.raises(UsageError, match="state=0"):
        StateSpaceMixer(9, 3, state=0)
    with pytest.raises(UsageError, match="without cache="):
        StateSpaceMixer(9, 3)(torch.zeros(1, 2, 9), cache=print)


@pytest.mark.parametrize("retention", [0.5, 0.9, 0.999])
def test_a_state_begins_by_keeping_the_share_asked_for(retention):
    mixer = StateSpaceMixer(8, 2, state=4, retention=retention)
    log_decay = mixer.parts(torch.zeros(1, 3, 8))[1]
    torch.testing.assert_close(log_decay.exp(), torch.full((1, 3, 2), retention))
    for wrong in (0.0, 1.0, -0.5):
        with pytest.raises(UsageError, match="retention"):
            StateSpaceMixer(8, 2, retention=wrong)
