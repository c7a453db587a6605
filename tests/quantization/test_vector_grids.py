"""Codebooks, lattices, complex roots and pyramids against naive loops and closed forms."""

import itertools
import math

import pytest
import torch

from limbeck.errors import ArtifactError
from limbeck.quantization.codebooks import CodebookGrid, assign, centres
from limbeck.quantization.fourth_roots import FourthRootGrid, nearest_roots, real_matrix, roots, widely_linear
from limbeck.quantization.grids import Packed, PerChannel, PerTensor, Quantizer
from limbeck.quantization.lattices import coordinates, nearest_point
from limbeck.quantization.pyramids import PyramidGrid, count, onto_pyramid, rank, unrank


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_kmeans_keeps_few_values_and_only_improves():
    few = torch.tensor([3.0, -1.0, 0.5])[torch.randint(0, 3, (4, 20), generator=torch.Generator().manual_seed(0))]
    q = Quantizer(CodebookGrid(2), PerTensor(), "kmeans")
    assert torch.equal(q.decode(q.encode(few)), few)
    for width in (1, 2):
        x = numbers(400, width, seed=1)
        errors = [(centres(x, 8, k)[assign(x, centres(x, 8, k))] - x).square().sum().item() for k in (1, 3, 30)]
        assert errors[0] >= errors[1] >= errors[2]
        book = centres(x, 8, 300)
        index = assign(x, book)
        assert torch.equal(index, (x.unsqueeze(1) - book).square().sum(2).argmin(1))
        means = torch.stack([x[index == k].mean(0) for k in range(8)])
        assert torch.allclose(means, book, atol=1e-5)


def test_kmeans_of_normal_numbers_reaches_the_lloyd_max_quantizer():
    x = torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000).float()[:, None]
    book = centres(x, 4, 200).flatten().sort().values
    assert torch.allclose(book, torch.tensor([-1.5104, -0.4528, 0.4528, 1.5104]), atol=2e-2)


def test_every_e8_code_is_a_point_and_every_point_the_nearest():
    bits = torch.arange(2**16).unsqueeze(1) >> (2 * torch.arange(8)) & 3
    points = coordinates(bits.to(torch.uint8), 2)
    assert len(torch.unique(points, dim=0)) == 2**16
    doubled = points * 2
    assert torch.equal(doubled, doubled.round())
    parities = (doubled % 2).sum(1)
    assert ((parities == 0) | (parities == 8)).all()  # all whole or all halves
    whole = parities == 0
    assert (points[whole].sum(1) % 2 == 0).all() and ((points[~whole] - 0.5).sum(1) % 2 == 0).all()
    y = numbers(60, 8, seed=3) * 1.3
    found, codes = nearest_point(y, 2)
    assert torch.equal(coordinates(codes, 2), found)
    least = torch.cdist(y.double(), points.double()).square().min(1).values
    assert torch.allclose((y - found).double().square().sum(1), least)


def test_e8_beats_the_integer_grid_at_equal_density():
    y = (torch.rand(20_000, 8, generator=torch.Generator().manual_seed(0)) - 0.5) * 16
    lattice = (nearest_point(y, 6)[0] - y).square().mean()
    assert lattice.item() == pytest.approx(0.0717, abs=0.001)
    assert (y.round() - y).square().mean().item() == pytest.approx(1 / 12, abs=0.001)


def test_the_widely_linear_form_is_the_matrix():
    matrix, x = numbers(6, 10), numbers(10, seed=1)
    parts = torch.view_as_complex(widely_linear(matrix).contiguous())
    z = torch.complex(x[:5], x[5:])
    y = parts[0] @ z + parts[1] @ z.conj()
    assert torch.allclose(torch.cat([y.real, y.imag]), matrix @ x, atol=1e-5)
    assert torch.allclose(real_matrix(widely_linear(matrix)), matrix, atol=1e-6)


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_fourth_roots_equal_the_complex_arithmetic(stages):
    matrix = numbers(8, 12, seed=5)
    q = Quantizer(FourthRootGrid(stages), PerTensor(), "mean")
    found = torch.view_as_complex(widely_linear(q.decode(q.encode(matrix))).contiguous())
    for part, given in zip(found, torch.view_as_complex(widely_linear(matrix).contiguous())):
        rest, total = given, torch.zeros_like(given)
        for _ in range(stages):
            turns = torch.round(torch.angle(rest) / (math.pi / 2)) % 4
            root = torch.exp(1j * turns * math.pi / 2)
            on_real = turns % 2 == 0
            scale = torch.where(on_real, rest.real[on_real].abs().mean(), rest.imag[~on_real].abs().mean())
            total, rest = total + root * scale, rest - root * scale
        assert torch.allclose(part, total, atol=1e-5)
    assert torch.equal(nearest_roots(roots(torch.arange(4))), torch.arange(4, dtype=torch.uint8))


def test_the_pyramid_is_numbered_without_gaps():
    for entries, pulses in ((1, 3), (2, 4), (3, 4), (4, 3), (5, 2)):
        points = [
            p for p in itertools.product(range(-pulses, pulses + 1), repeat=entries) if sum(map(abs, p)) == pulses
        ]
        assert count(entries, pulses) == len(points)
        assert count(entries, pulses) == count(entries - 1, pulses) + count(entries, pulses - 1) + count(
            entries - 1, pulses - 1
        )
        index = rank(torch.tensor(points), pulses)
        assert sorted(index.tolist()) == list(range(len(points)))
        assert torch.equal(unrank(index, entries, pulses), torch.tensor(points))
    last = torch.tensor([count(16, 24) - 1, 0])
    assert torch.equal(rank(unrank(last, 16, 24), 24), last)


def test_points_lie_on_the_pyramid_near_the_direction():
    v = numbers(300, 4, seed=8)
    p = onto_pyramid(v, 5)
    assert (p.abs().sum(1) == 5).all() and torch.equal(p, p.round())
    points = torch.tensor([q for q in itertools.product(range(-5, 6), repeat=4) if sum(map(abs, q)) == 5]).float()
    y = 5 * v / v.abs().sum(1, keepdim=True)
    assert torch.allclose((p - y).square().sum(1), torch.cdist(y, points).square().min(1).values, atol=1e-4)
    assert onto_pyramid(torch.zeros(2, 3), 4).tolist() == [[4.0, 0.0, 0.0]] * 2


def test_gain_and_shape_are_stored_apart():
    x = numbers(6, 32, seed=9)
    q = Quantizer(PyramidGrid(8, 6, 8), PerChannel(0), "minmax")
    packed = q.encode(x)
    found = q.decode(packed)
    vectors, points = x.unflatten(1, (4, 8)), onto_pyramid(x.unflatten(1, (4, 8)), 6)
    unit = points / points.norm(dim=-1, keepdim=True)
    step = vectors.norm(dim=-1).amax(1, keepdim=True) / 255
    lengths = ((vectors * unit).sum(-1) / step).round() * step
    assert torch.allclose(found, (unit * lengths.unsqueeze(-1)).flatten(1), atol=1e-5)
    assert q.grid.bits == ((count(8, 6) - 1).bit_length() + 8) / 8
    broken = Packed(torch.full_like(packed.codes, 255), packed.scale, None, packed.shape)
    with pytest.raises(ArtifactError, match="none of the"):
        q.check(broken)
