"""Vector quantization against brute force, scikit-learn's k-means, and the update rules written out."""

import pytest
import torch

from limbeck.codecs import VectorQuantizer, kmeans, nearest, squared_distances
from limbeck.errors import UsageError


def test_nearest_is_brute_force_and_chunks_change_nothing():
    x, codes = torch.randn(50, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    expected = [min(range(7), key=lambda k, v=v: float((v - codes[k]).norm())) for v in x]
    assert nearest(x, codes).tolist() == expected == nearest(x, codes, chunk=8).tolist()
    torch.testing.assert_close(squared_distances(x, codes), torch.cdist(x, codes).square())
    assert nearest(x[:0], codes).shape == (0,)
    assert nearest(torch.zeros(1, 2), torch.tensor([[1.0, 0], [-1, 0]])).tolist() == [0]


def test_kmeans_is_as_good_as_another_one():
    from sklearn.cluster import KMeans

    x = torch.randn(300, 4)
    ours = min(
        float(squared_distances(x, kmeans(x, 8, torch.Generator().manual_seed(s), 100)).amin(1).sum()) for s in range(5)
    )
    theirs = KMeans(8, n_init=5, random_state=0).fit(x.numpy()).inertia_
    assert ours == pytest.approx(theirs, rel=0.03)


def test_kmeans_centres_are_the_means_of_their_vectors():
    x, w = torch.randn(200, 2, dtype=torch.float64), torch.rand(200, dtype=torch.float64)
    centres = kmeans(x, 5, iterations=200, weights=w)
    assigned = nearest(x, centres)
    for k in range(5):
        own = assigned == k
        torch.testing.assert_close(centres[k], (w[own, None] * x[own]).sum(0) / w[own].sum())


def test_kmeans_finds_the_only_answer_and_survives_repeated_vectors():
    x = torch.tensor([[0.0], [0.1], [10.0], [10.1], [20.0]])
    found = kmeans(x, 3, torch.Generator().manual_seed(3)).flatten().sort().values
    torch.testing.assert_close(found, torch.tensor([0.05, 10.05, 20.0]))
    assert bool(kmeans(torch.ones(6, 2), 3).isfinite().all())
    with pytest.raises(UsageError, match="count=7"):
        kmeans(torch.ones(6, 2), 7)


def test_the_gradient_goes_straight_through_and_the_loss_is_the_formula():
    layer = VectorQuantizer(5, 3, commitment=0.25, decay=None)
    x = torch.randn(2, 4, 3, requires_grad=True)
    found = layer(x)
    torch.testing.assert_close(found.vectors, layer.codes[found.indices])
    distance = (x.detach() - layer.codes.detach()[found.indices]).square().mean()
    torch.testing.assert_close(found.loss, 1.25 * distance)
    weight = torch.randn(2, 4, 3)
    (found.vectors * weight).sum().backward()
    torch.testing.assert_close(x.grad, weight)
    assert layer.codes.grad is None  # the decoder's gradient is the encoder's, never the codebook's
    x.grad = None
    layer(x).loss.backward()
    torch.testing.assert_close(x.grad, 0.25 * 2 * (x - layer.codes[found.indices]).detach() / x.numel())
    for k in range(5):
        own = found.indices == k
        expected = (2 * (layer.codes[k] - x[own]).sum(0) / x.numel()).detach()
        torch.testing.assert_close(layer.codes.grad[k], expected)


def test_moving_averages_are_the_rule_written_out():
    layer = VectorQuantizer(4, 2, decay=0.9)
    start, x = layer.codes.detach().clone(), torch.randn(30, 2)
    indices = layer.train()(x).indices
    for k in range(4):
        own = x[indices == k]
        count = 0.9 + 0.1 * len(own)
        torch.testing.assert_close(layer.codes[k].detach(), (0.9 * start[k] + 0.1 * own.sum(0)) / count)
    before = layer.codes.detach().clone()
    layer.eval()(x)
    assert torch.equal(layer.codes, before)
    assert not layer.codes.requires_grad


def test_many_updates_with_the_same_vectors_end_at_their_means():
    layer = VectorQuantizer(3, 2, decay=0.5)
    x = torch.randn(100, 2)
    layer.fit(x)
    for _ in range(100):
        found = layer(x)
    for k in range(3):
        torch.testing.assert_close(layer.codes[k].detach(), x[found.indices == k].mean(0))


def test_a_dead_code_comes_back():
    layer = VectorQuantizer(2, 1, decay=0.5, revive=0.01)
    layer.set_codes(torch.tensor([[0.0], [1000.0]]))
    x = torch.randn(50, 1)
    for _ in range(20):
        layer(x)
    assert len(layer(x).indices.unique()) == 2


def test_indices_come_back_and_the_codebook_may_shrink():
    layer = VectorQuantizer(8, 3)
    x = torch.randn(2, 5, 5, 3)
    layer.fit(x)
    indices = layer.encode(x)
    assert torch.equal(layer.encode(layer.decode(indices)), indices)
    layer.set_codes(kmeans(layer.codes, 4))
    assert layer.count == 4 and layer.encode(x).max() < 4
    assert set(layer.state_dict()) == {"codes", "counts", "sums"}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"count": 1}, "count"),
        ({"width": 0}, "width"),
        ({"decay": 1.0}, "decay"),
        ({"commitment": -1.0}, "commitment"),
        ({"revive": -1.0}, "revive"),
    ],
)
def test_nonsense_is_refused(settings, named):
    with pytest.raises(UsageError, match=named):
        VectorQuantizer(**{"count": 4, "width": 2, **settings})
    with pytest.raises(UsageError, match="codes"):
        VectorQuantizer(4, 2).set_codes(torch.zeros(4, 3))
    with pytest.raises(UsageError, match="must be"):
        nearest(torch.zeros(3, 2), torch.zeros(3, 4))
