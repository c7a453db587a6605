"""Vector quantization against loops over vectors and codes."""

import math

import pytest
import torch

from limbeck.codecs import vector_quantization
from limbeck.codecs.vector_quantization import VectorQuantizer, kmeans, look_up, nearest, straight_through
from limbeck.errors import UsageError


def test_nearest_is_the_smallest_distance():
    x, codes = torch.randn(20, 3, 4), torch.randn(3, 7, 4)
    expected = [
        [min(range(7), key=lambda m: float((x[n, h] - codes[h, m]).norm())) for h in range(3)] for n in range(20)
    ]
    assert nearest(x, codes).tolist() == expected
    values = look_up(nearest(x, codes), codes)
    assert torch.equal(values[5, 2], codes[2, expected[5][2]])


def test_nearest_in_pieces_is_nearest_at_once(monkeypatch):
    x, codes = torch.randn(50, 3, 2), torch.randn(3, 8, 2)
    codes[:, 5] = codes[:, 2]  # the first of equals
    expected = torch.cdist(x.transpose(0, 1).double(), codes.double()).argmin(-1).T
    for at_once in (1, 7, 50, 1000):
        monkeypatch.setitem(vector_quantization.SCORES, "cpu", at_once * 3 * 8)
        assert torch.equal(nearest(x, codes), expected)
    assert 2 in expected and 5 not in expected and nearest(x[:0], codes).shape == (0, 3)


def test_a_code_encodes_to_itself_and_decoding_is_idempotent():
    quantizer = VectorQuantizer(16, 4, heads=2).eval()
    x = torch.randn(5, 3, 2, 4)
    once = quantizer.decode(quantizer.encode(x))
    assert quantizer.encode(x).shape == (5, 3, 2)
    assert torch.equal(quantizer.decode(quantizer.encode(once)), once)
    assert quantizer.bits == 2 * 4


def test_the_gradient_goes_straight_through_and_each_loss_to_its_side():
    x = torch.randn(6, 1, 3, requires_grad=True)
    quantizer = VectorQuantizer(4, 3, decay=None, initial="random")
    found = quantizer(x)
    (found.values * torch.arange(18).view(6, 1, 3)).sum().backward()
    torch.testing.assert_close(x.grad, torch.arange(18.0).view(6, 1, 3))
    x.grad = None
    chosen = quantizer.codes[0, found.indices[:, 0]].unsqueeze(1)
    found.commitment.backward()
    torch.testing.assert_close(x.grad, (2 * (x - chosen) / 18).detach())
    assert quantizer.codes.grad is None
    found.codebook.backward()
    expected = torch.zeros(4, 3).index_add_(0, found.indices[:, 0], (2 * (chosen - x) / 18).detach().squeeze(1))
    torch.testing.assert_close(quantizer.codes.grad[0], expected)
    torch.testing.assert_close(straight_through(x, chosen), chosen)


def test_codes_follow_the_moving_averages():
    x, decay = torch.randn(30, 2, 3), 0.7
    quantizer = VectorQuantizer(4, 3, heads=2, decay=decay, initial="random").train()
    codes, counts = quantizer.codes.clone(), torch.ones(2, 4)
    sums = codes.clone()
    for _ in range(3):
        at = nearest(x, codes)
        for head in range(2):
            for code in range(4):
                mine = x[at[:, head] == code, head]
                counts[head, code] = decay * counts[head, code] + (1 - decay) * len(mine)
                sums[head, code] = decay * sums[head, code] + (1 - decay) * mine.sum(0)
        codes = sums / counts.unsqueeze(-1)
        quantizer(x)
    torch.testing.assert_close(quantizer.codes, codes)
    torch.testing.assert_close(quantizer.counts, counts)


def test_with_no_memory_a_step_is_one_of_lloyds():
    x = torch.randn(40, 3)
    quantizer = VectorQuantizer(5, 3, decay=0.0, initial="random").train()
    at = nearest(x.unsqueeze(1), quantizer.codes)[:, 0]
    used = [m for m in range(5) if bool((at == m).any())]
    quantizer(x.unsqueeze(1))
    for m in used:
        torch.testing.assert_close(quantizer.codes[0, m], x[at == m].mean(0))


def test_kmeans_ends_where_every_centre_is_the_mean_of_its_own():
    draw = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(30, 2, generator=draw) * 0.1 + 5 * torch.tensor(c) for c in ((0.0, 0), (1, 1), (0, 1))])
    centres = kmeans(x, 3, 30, torch.Generator().manual_seed(3))
    at = nearest(x.unsqueeze(1), centres.unsqueeze(0))[:, 0]
    for m in at.unique():
        torch.testing.assert_close(centres[m], x[at == m].mean(0))
    one = kmeans(x, 1, 2)
    torch.testing.assert_close(one[0], x.mean(0))


def test_unused_codes_are_replaced_by_inputs():
    quantizer = VectorQuantizer(8, 2, decay=0.5, least_use=0.4, initial="random").train()
    x = torch.randn(50, 1, 2) + 100
    for _ in range(4):
        quantizer(x)
    assert float(quantizer.codes.min()) > 90
    assert len(quantizer.encode(x).unique()) > 3


def test_frozen_and_evaluated_codes_stay():
    x = torch.randn(30, 1, 3)
    quantizer = VectorQuantizer(4, 3).train()
    quantizer(x)
    for still in (quantizer.eval(), quantizer.train().freeze()):
        before = still.codes.clone()
        still(x + 1)
        assert torch.equal(still.codes, before)


def test_the_first_batch_places_the_codes_and_the_state_is_saved():
    x = torch.randn(60, 1, 3) * 0.1 + 7
    quantizer = VectorQuantizer(6, 3).train()
    quantizer(x)
    assert float((quantizer.codes - 7).abs().max()) < 1
    other = VectorQuantizer(6, 3)
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other.eval()(x).values, quantizer.eval()(x).values)
    assert math.isclose(float(quantizer(x).commitment), float((x - quantizer(x).values).square().mean()), rel_tol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"size": 0}, "size"), ({"width": 0}, "width"), ({"heads": 0}, "heads"), ({"decay": 1.0}, "decay"),
     ({"least_use": -1}, "least_use"), ({"initial": "zeros"}, "initial")],
)  # fmt: skip
def test_nonsense_is_refused(wrong, named):
    with pytest.raises(UsageError, match=named):
        VectorQuantizer(**{"size": 4, "width": 3, **wrong})


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="expected"):
        VectorQuantizer(4, 3, heads=2).encode(torch.zeros(5, 3))
    with pytest.raises(UsageError, match="centres"):
        kmeans(torch.zeros(3, 2), 4)
