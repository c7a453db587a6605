import pytest
import torch
from torch import nn

from limbeck.errors import DataError, UsageError
from limbeck.quantization import Bucketed, BucketQuantizer, on_buckets, store, stored_bytes
from limbeck.quantization.buckets import nearest, on_levels, quantile_levels, uniform_levels
from limbeck.quantization.straight_through import straight_through


def naive(x, levels, size):
    """Bucket by bucket, element by element."""
    flat, out = x.flatten().tolist(), []
    for start in range(0, len(flat), size):
        run = flat[start : start + size]
        low, high = min(run), max(run)
        for value in run:
            v = (value - low) / (high - low) if high > low else 0.0
            level = min(levels, key=lambda p: abs(p - v))
            out.append(low + (high - low) * level)
    return torch.tensor(out).reshape(x.shape)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_values_are_those_of_a_naive_loop(bits):
    x = torch.randn(5, 3, 7)
    for levels in (uniform_levels(bits), torch.rand(2**bits).sort().values):
        expected = naive(x, levels.tolist(), 16)
        torch.testing.assert_close(on_levels(x, levels, 16), expected)
        quantizer = BucketQuantizer(bits, 16, tuple(levels.tolist()))
        torch.testing.assert_close(quantizer.decode(quantizer.encode(x)), expected)


def test_the_error_is_at_most_half_a_step_and_the_ends_of_a_bucket_are_exact():
    x = torch.randn(1000)
    found = BucketQuantizer(3, 100).decode(BucketQuantizer(3, 100).encode(x))
    rows, got = x.reshape(10, 100), found.reshape(10, 100)
    span = rows.amax(1) - rows.amin(1)
    assert bool(((rows - got).abs().amax(1) <= span / 14 + 1e-6).all())
    torch.testing.assert_close(got.amax(1), rows.amax(1))
    torch.testing.assert_close(got.amin(1), rows.amin(1))
    assert torch.equal(
        BucketQuantizer(2).decode(BucketQuantizer(2).encode(torch.full((7,), 0.3))), torch.full((7,), 0.3)
    )


def test_the_levels_gradient_sums_span_times_gradient_over_their_weights():
    x, levels = torch.randn(50), torch.tensor([0.1, 0.4, 0.9], requires_grad=True)
    weights = torch.randn(50)
    (on_levels(x, levels, 20) * weights).sum().backward()
    expected = torch.zeros(3)
    for start in range(0, 50, 20):
        run = x[start : start + 20]
        span = run.max() - run.min()
        codes = nearest((run - run.min()) / span, levels.detach())
        for code, weight in zip(codes.tolist(), weights[start : start + 20].tolist()):
            expected[code] += float(span) * weight
    torch.testing.assert_close(levels.grad, expected, rtol=1e-5, atol=1e-5)


def test_unsorted_levels_keep_their_own_gradients():
    x, order = torch.randn(60), torch.tensor([2, 0, 1])
    rising = torch.tensor([0.1, 0.4, 0.9], requires_grad=True)
    mixed = rising.detach()[order].requires_grad_()
    for levels in (rising, mixed):
        on_levels(x, levels, 20).square().sum().backward()
    torch.testing.assert_close(on_levels(x, rising, 20), on_levels(x, mixed, 20))
    torch.testing.assert_close(mixed.grad, rising.grad[order])


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    x = torch.randn(30, requires_grad=True)
    found = straight_through(x, on_levels(x, uniform_levels(2), 10))
    torch.testing.assert_close(found, on_levels(x.detach(), uniform_levels(2), 10))
    (found * torch.arange(30.0)).sum().backward()
    torch.testing.assert_close(x.grad, torch.arange(30.0))


def test_quantile_levels_share_the_elements_evenly():
    x = torch.randn(4096).exp()
    levels = quantile_levels(x, 2, 4096)
    v = (x - x.min()) / (x.max() - x.min())
    for place, level in enumerate(levels.tolist()):
        assert float((v < level).float().mean()) == pytest.approx((place + 0.5) / 4, abs=0.01)


def model():
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4))


def test_training_the_weights_moves_them_and_keeps_the_answers_on_levels():
    net = on_buckets(model(), 2, 64)
    x, before = torch.randn(6, 2, 6, 6), {k: v.clone() for k, v in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(before[k], v) for k, v in net.state_dict().items() if k.endswith("original"))
    assert len(net[0].weight.detach()[:1].unique()) <= 4
    answers = net.eval()(x)
    stored = store(net)
    assert set(stored) == {"0.weight", "4.weight"}
    assert type(net[0]) is nn.Conv2d
    assert "weight" in dict(net[0].named_parameters())
    torch.testing.assert_close(net(x), answers)


def test_training_the_levels_leaves_everything_else_alone():
    net = on_buckets(model(), 2, 64, learn="levels")
    learned = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert learned == {f"{layer}.parametrizations.weight.0.levels" for layer in (0, 4)}
    x = torch.randn(6, 2, 6, 6)
    start = net[4].weight.detach().clone()
    loss = net(x).square().mean()
    loss.backward()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad / parameter.grad.norm()
    assert not torch.equal(net[4].weight, start)
    assert float(net(x).square().mean()) < float(loss)
    answers = net.eval()(x)
    store(net)
    torch.testing.assert_close(net(x), answers)


def test_bytes_are_real_and_go_both_ways():
    x = torch.randn(3000)
    stored = BucketQuantizer(2, 256).encode(x)
    data = stored.to_bytes()
    back = Bucketed.from_bytes(data)
    for name in ("codes", "low", "span", "levels"):
        assert torch.equal(getattr(back, name), getattr(stored, name))
    assert back.shape == (3000,)
    assert stored.nbytes == 750 + 4 * (12 + 12 + 4)
    assert len(data) < stored.nbytes  # the outer levels are rare
    for place in range(0, len(data), 37):
        with pytest.raises(DataError):
            Bucketed.from_bytes(data[:place])
        with pytest.raises(DataError):
            Bucketed.from_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
    net = on_buckets(model(), 2, 64)
    found = store(net)
    rest = 4 * (8 + 8 + 8 + 8 + 8 + 4) + 8  # biases, the normalization, and its counter of batches
    assert stored_bytes(net, found) == sum(len(entry.to_bytes()) for entry in found.values()) + rest


def test_nonsense_is_refused():
    for settings, named in (
        ({"bits": 0}, "bits"),
        ({"bits": 9}, "bits"),
        ({"size": 1}, "size"),
        ({"levels": (0.5,)}, "levels"),
    ):
        with pytest.raises(UsageError, match=named):
            BucketQuantizer(**settings)
    with pytest.raises(DataError, match="NaN"):
        BucketQuantizer().encode(torch.tensor([float("nan")]))
    with pytest.raises(UsageError, match="learn"):
        on_buckets(model(), 2, learn="both")
    with pytest.raises(UsageError, match="no linear"):
        on_buckets(nn.ReLU(), 2)
    with pytest.raises(UsageError, match="parametrized"):
        on_buckets(on_buckets(model(), 2), 2)
    with pytest.raises(UsageError, match="on_buckets"):
        store(model())
