import pytest
import torch

from limbeck.build import build, lineage
from limbeck.errors import UsageError
from limbeck.inference.kv_cache import KeyValueCache, LayerAverage, SharedLowRank
from limbeck.inference.kv_cache.low_rank import rank_within, subspace_overlap, truncated
from limbeck.models import gpt
from limbeck.models.layers import rotate


def model(rotary=True, depth=4):
    torch.manual_seed(0)
    made = gpt(20, length=16, depth=depth, width=8, heads=2, rotary=rotary)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


def filled(made, length=10, batch=3):
    ids = torch.randint(0, 20, (batch, length))
    cache = KeyValueCache(len(made.blocks))
    made(ids, cache=cache)
    return ids, cache


def test_rotation_is_a_complex_product():
    x = torch.randn(2, 3, 5, 6)
    pairs = torch.complex(x[..., :3], x[..., 3:])
    turn = torch.polar(torch.ones(5, 3), torch.arange(7, 12.0)[:, None] * 10000.0 ** (-torch.arange(3) / 3))
    expected = pairs * turn
    torch.testing.assert_close(rotate(x, 7), torch.cat([expected.real, expected.imag], -1))


def test_rotary_attention_knows_distances_only():
    query, key = torch.randn(1, 6), torch.randn(1, 6)
    near = rotate(query, 3) @ rotate(key, 1).T
    torch.testing.assert_close(near, rotate(query, 9) @ rotate(key, 7).T)
    assert not torch.allclose(near, rotate(query, 4) @ rotate(key, 1).T)


@pytest.mark.parametrize("rotary", [True, False])
def test_a_cache_changes_no_number(rotary):
    made = model(rotary)
    ids = torch.randint(0, 20, (2, 12))
    mask = torch.ones(2, 12).long()
    mask[0, :3] = 0
    for given in (None, mask):
        expected = made(ids, given)
        cache = KeyValueCache(4)
        parts = []
        for first, last in ((0, 5), (5, 6), (6, 12)):
            parts.append(made(ids[:, first:last], None if given is None else given[:, :last], cache=cache))
            assert cache.length == last
        seen = (
            slice(None) if given is None else given.bool()
        )  # a token that sees nothing attends evenly to what is there
        torch.testing.assert_close(torch.cat(parts, 1)[seen], expected[seen])
    assert cache.numbers == 2 * 4 * 2 * 12 * 8 and cache.nbytes == 4 * cache.numbers


def test_rotary_models_come_back_from_their_lineage_and_see_the_order():
    made = model()
    again = build(lineage(made).factory).eval()
    again.load_state_dict(made.state_dict())
    ids = torch.randint(0, 20, (2, 9))
    assert torch.equal(again(ids), made(ids)) and made.positions is None
    assert not torch.allclose(made(ids.flip(1))[:, -1], made(ids)[:, -1])
    assert made(torch.randint(0, 20, (1, 40))).shape == (1, 40, 20), "no longest input"
    with pytest.raises(UsageError, match="even width"):
        gpt(20, width=6, heads=2, rotary=True)


def test_the_whole_rank_is_the_dense_cache():
    made = model()
    _, cache = filled(made)
    following = torch.randint(0, 20, (3, 4))
    for group in (1, 2, 3, 4):
        small = SharedLowRank(10, 10, group).compress(cache)
        for index in range(4):
            for a, b in zip(small.layer(index), cache.layer(index)):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        copied = KeyValueCache(4)
        for index in range(4):
            copied.extend(index, *cache.layer(index))
        torch.testing.assert_close(made(following, cache=small), made(following, cache=copied), rtol=1e-4, atol=1e-5)
        assert small.length == 14


def test_a_shared_basis_equals_a_decomposition_by_hand():
    _, cache = filled(model())
    small = SharedLowRank(key_rank=3, value_rank=5, group=2).compress(cache)
    for first in (0, 2):
        for which, rank in ((0, 3), (1, 5)):
            x = torch.cat([cache.layer(first + i)[which].transpose(1, 2).reshape(3, 10, 8) for i in (0, 1)], -1)
            _, vectors = torch.linalg.eigh(x.double() @ x.double().transpose(1, 2))
            top = vectors[..., -rank:]
            expected = (top @ top.transpose(1, 2) @ x.double()).float()
            for i in (0, 1):
                made = small.layer(first + i)[which].transpose(1, 2).reshape(3, 10, 8)
                torch.testing.assert_close(made, expected[..., 8 * i : 8 * i + 8], rtol=1e-4, atol=1e-4)
    assert small.numbers == 3 * 2 * (3 + 5) * (10 + 2 * 8) and small.nbytes == 4 * small.numbers


def test_layers_with_one_token_basis_lose_nothing_together_and_much_apart():
    basis = torch.randn(1, 1, 30, 4)
    shared = KeyValueCache(3)
    for index in range(3):
        shared.extend(index, basis @ torch.randn(4, 6), basis @ torch.randn(4, 6))
    dense = shared.numbers
    together = SharedLowRank.within(0.5, shared, group=3, key_share=0.5)
    alone = SharedLowRank.within(0.5, shared, group=1, key_share=0.5)
    error = {}
    for name, settings in (("together", together), ("alone", alone)):
        small = settings.compress(shared)
        assert small.numbers <= 0.5 * dense
        error[name] = sum((a - b).norm() for i in range(3) for a, b in zip(small.layer(i), shared.layer(i)))
    assert error["together"] < 1e-3 < error["alone"]
    assert subspace_overlap(shared.layer(0)[0][0, 0], shared.layer(1)[0][0, 0], 4) == pytest.approx(1, abs=1e-4)
    assert subspace_overlap(torch.eye(8)[:, :4], torch.eye(8)[:, 4:], 4) == pytest.approx(0, abs=1e-6)


def test_rank_within_a_number_of_numbers():
    assert rank_within(3 * 26, 10, 16) == 3 and rank_within(3 * 26 - 1, 10, 16) == 2 and rank_within(0, 10, 16) == 1
    basis, loadings = truncated(torch.randn(10, 16).bfloat16(), 3)
    assert basis.dtype == loadings.dtype == torch.bfloat16 and basis.shape == (10, 3) and loadings.shape == (3, 16)


def test_an_average_of_two_layers_is_the_middle_of_the_arc():
    _, cache = filled(model(depth=2))
    small = LayerAverage(2).compress(cache)
    for which in (0, 1):
        a, b = (cache.layer(i)[which].transpose(1, 2).reshape(3, 10, 8) for i in (0, 1))
        na, nb = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
        omega = (a / na * b / nb).sum(-1, keepdim=True).acos()
        middle = (0.5 * omega).sin() / omega.sin() * (a / na + b / nb)
        for i, norm in ((0, na), (1, nb)):
            made = small.layer(i)[which].transpose(1, 2).reshape(3, 10, 8)
            torch.testing.assert_close(made, norm * middle, rtol=1e-4, atol=1e-5)
    assert small.numbers == 2 * 3 * 10 * (8 + 2) and small.length == 10


def test_the_least_similar_tokens_keep_their_own_vectors():
    made = model()
    _, cache = filled(made)
    assert LayerAverage.within(0.7, cache, 4).compress(cache).numbers <= 0.7 * cache.numbers
    assert LayerAverage.within(0.7, cache, 4).keep == 0.3 and LayerAverage.within(1.0, cache, 2).keep == 0.3
    small = LayerAverage(4, keep=0.3).compress(cache)
    similarity = torch.stack([torch.nn.functional.normalize(cache.stacked(i, i + 1)[0], dim=-1) for i in range(4)])
    least = similarity.mean(0).norm(dim=-1).argsort(1)[:, :3]
    for row in range(3):
        same = [t for t in range(10) if torch.allclose(small.layer(1)[0][row, :, t], cache.layer(1)[0][row, :, t])]
        assert same == sorted(least[row].tolist())
    assert small.numbers == 2 * 3 * (10 * (8 + 4) + 3 + 4 * 3 * 8)
    assert made(torch.zeros(3, 2).long(), cache=small).isfinite().all() and small.length == 12


def test_equal_layers_average_to_themselves():
    cache = KeyValueCache(2)
    key, value = torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 4)
    for index in range(2):
        cache.extend(index, key * (index + 1), value)
    small = LayerAverage(2).compress(cache)
    for index in range(2):
        torch.testing.assert_close(small.layer(index), (key * (index + 1), value))


def test_nonsense_is_refused():
    for make, words in (
        (lambda: SharedLowRank(0, 1), "key_rank=0"),
        (lambda: SharedLowRank(1, 1, group=0), "group=0"),
        (lambda: LayerAverage(1), "group=1"),
        (lambda: LayerAverage(keep=1.0), "keep=1.0"),
        (lambda: LayerAverage.within(0.2, filled(model())[1]), "at least 0.625"),
        (lambda: KeyValueCache(0), "depth=0"),
        (lambda: KeyValueCache(1).layer(0), "layer 0 of the cache is empty"),
        (lambda: SharedLowRank.within(0.0, filled(model())[1]), "share=0.0"),
    ):
        with pytest.raises(UsageError, match=words):
            make()
