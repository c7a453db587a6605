"""Quantized caches: against naive loops, exact where nothing is rounded, honest about bytes, and under transformers' generate."""

import pytest
import torch

from limbeck.errors import UsageError
from limbeck.inference.kv_cache import KeyValueCache, QuantizedEntries, cache_bytes, quantized_cache
from limbeck.models import gpt

transformers = pytest.importorskip("transformers")


def sides(tokens=12, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 2, 3, tokens, width, generator=generator)  # key and value: (B, heads, L, d)


def naive(x, along, bits, group):
    """Every group by itself: lowest value, step, nearest code."""
    x = x.transpose(-1, -2) if along == "channel" else x
    x = x.contiguous()
    out = torch.empty_like(x)
    flat, values = out.view(-1, x.shape[-1]), x.reshape(-1, x.shape[-1])
    for row, numbers in enumerate(values.tolist()):
        for first in range(0, len(numbers), group):
            part = numbers[first : first + group]
            low, step = min(part), (max(part) - min(part)) / (2**bits - 1)
            flat[row, first : first + group] = torch.tensor([low + round((v - low) / step) * step for v in part])
    return out.transpose(-1, -2) if along == "channel" else out


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("keys", ["channel", "token"])
def test_packed_entries_against_a_naive_loop(bits, keys):
    key, value = sides()
    settings = QuantizedEntries(bits, keys=keys, values="token", group=4, recent=0, scale_type="float32")
    entries = settings.pack(key, value)
    found = entries.unpack()
    torch.testing.assert_close(found[0], naive(key, keys, bits, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1], naive(value, "token", bits, 4), atol=1e-5, rtol=0)
    numbers = key.numel() + value.numel()
    assert sum(t.numel() * t.element_size() for t in entries.tensors()) == numbers * bits // 8 + numbers // 4 * 8
    picked = entries.select(torch.tensor([1, 0, 1])).unpack()
    assert all(torch.equal(side, whole[[1, 0, 1]]) for side, whole in zip(picked, found))


def test_only_whole_groups_that_are_not_recent_are_packed():
    assert [QuantizedEntries(group=4, recent=3).settled(n) for n in (2, 6, 7, 10, 11)] == [0, 0, 4, 4, 8]
    assert QuantizedEntries(keys="token", group=4, recent=3).settled(10) == 7


def test_a_compressed_cache_keeps_recent_tokens_and_goes_on():
    torch.manual_seed(0)
    model = gpt(20, length=32, depth=2, width=16, heads=2, rotary=True).eval()
    ids = torch.randint(0, 20, (3, 20))
    dense = KeyValueCache(2)
    model(ids[:, :15], cache=dense)
    settings = QuantizedEntries(8, group=4, recent=5, scale_type="float32")
    small = settings.compress(dense)
    assert small.length == 15 and small.prefix.length == 8 and small.nbytes < dense.nbytes
    for index in range(2):
        for side, expected in zip(small.layer(index), dense.layer(index)):
            assert torch.equal(side[..., 8:, :], expected[..., 8:, :])
            assert 0 < (side - expected).abs().max() < 0.01 * expected.abs().max()
    torch.testing.assert_close(model(ids[:, 15:], cache=small), model(ids[:, 15:], cache=dense), atol=0.02, rtol=0)


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    return transformers.LlamaForCausalLM(config).eval()


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=128)
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_without_packing_is_what_it_was_and_with_8_bits_near(make, beams):
    model, ids = make(), torch.arange(14).view(2, 7) + 3
    settings = {"max_new_tokens": 20, "do_sample": False, "num_beams": beams, "pad_token_id": 0, "eos_token_id": None}
    expected = model.generate(ids, **settings)
    never = quantized_cache(model, QuantizedEntries(recent=100))
    assert torch.equal(model.generate(ids, past_key_values=never, **settings), expected)
    cache = quantized_cache(model, QuantizedEntries(8, group=8, recent=4))
    found = model.generate(ids, past_key_values=cache, **settings)
    assert cache.get_seq_length() == expected.shape[1] - 1
    assert cache_bytes(cache) < 0.75 * cache_bytes(never)
    with torch.no_grad():
        losses = [model(out, labels=out).loss for out in (expected, found)]
    assert abs(losses[0] - losses[1]) < 0.02


def test_the_next_token_sees_packed_ones():
    model, ids = llama(), torch.randint(0, 50, (2, 30))
    cache = quantized_cache(model, QuantizedEntries(2, group=8, recent=4))
    with torch.no_grad():
        expected = model(ids).logits
        first = model(ids[:, :29], past_key_values=cache).logits
        last = model(ids[:, 29:], past_key_values=cache).logits
    torch.testing.assert_close(first, expected[:, :29], atol=1e-4, rtol=0)
    assert 1e-3 < (last - expected[:, 29:]).abs().max() < 0.2 * expected.abs().max()


def test_taking_back_and_forgetting():
    model, ids = llama(), torch.randint(0, 50, (2, 30))
    cache = quantized_cache(model, QuantizedEntries(4, group=8, recent=4))
    with torch.no_grad():
        model(ids, past_key_values=cache)
        layer = cache.layers[0]
        assert layer.keys.shape[-2] == 6 and len(layer.pieces) == 1
        layer.crop(2)
        assert layer.get_seq_length() == 28
        with pytest.raises(UsageError, match="all but the last 4 are packed"):
            layer.crop(5)
        cache.reset()
        again = model(ids, past_key_values=cache).logits
        torch.testing.assert_close(again, model(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: QuantizedEntries(keys="rows"), "keys='rows'"),
        (lambda: QuantizedEntries(recent=-1), "recent=-1"),
        (lambda: QuantizedEntries(group=1), "group size 1"),
        (lambda: QuantizedEntries(9), "bits=9"),
        (lambda: QuantizedEntries(grid="kmeans"), "take affine"),
        (lambda: QuantizedEntries(recent=9).compress(filled()), "none is to be stored"),
        (lambda: quantized_cache(torch.nn.Linear(2, 2)), "no decoder of transformers"),
    ],
)
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(UsageError, match=words):
        make()


def filled():
    cache = KeyValueCache(1)
    cache.extend(0, *sides())
    return cache


def test_beams_take_packed_and_recent_tokens_along():
    model, ids = llama(), torch.randint(0, 50, (3, 31))
    settings = QuantizedEntries(4, group=8, recent=4)

    def after(ids, change):
        cache = quantized_cache(model, settings)
        with torch.no_grad():
            model(ids[:, :30], past_key_values=cache)
            change(cache)
            assert len(cache.layers[0].pieces) == 1
            return cache

    order = torch.tensor([2, 0, 0])
    for change, rows in (
        (lambda cache: cache.reorder_cache(order), order),
        (lambda cache: cache.batch_select_indices(order[:2]), order[:2]),
        (lambda cache: cache.batch_repeat_interleave(2), torch.arange(3).repeat_interleave(2)),
    ):
        found, expected = after(ids, change), after(ids[rows], lambda cache: None)
        with torch.no_grad():
            again = [model(ids[rows, 30:], past_key_values=cache).logits for cache in (found, expected)]
        torch.testing.assert_close(*again, atol=1e-5, rtol=0)
