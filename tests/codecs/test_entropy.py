import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.codecs import Huffman, code_lengths
from limbeck.codecs.entropy import canonical
from limbeck.errors import DataError, UsageError


def best_mean_length(counts):
    """The least cost over every assignment of lengths that a prefix-free code can have (Kraft's inequality)."""
    options = itertools.product(range(1, len(counts) + 1), repeat=len(counts))
    return min(
        sum(n * length for n, length in zip(counts, chosen))
        for chosen in options
        if sum(2.0**-length for length in chosen) <= 1
    )


@pytest.mark.parametrize(
    "counts", [(1, 1), (5, 1, 1), (8, 4, 2, 1), (3, 3, 3, 3, 3), (50, 20, 15, 10, 5), (1, 1, 1, 97)]
)
def test_the_lengths_are_the_best_that_any_prefix_free_code_has(counts):
    lengths = code_lengths(counts)
    assert sum(2.0**-length for length in lengths) == 1
    assert sum(n * length for n, length in zip(counts, lengths)) == best_mean_length(counts)


def test_symbols_that_do_not_occur_have_no_word():
    assert code_lengths([0, 3, 0, 2]) == [0, 1, 0, 1]
    assert code_lengths([0, 7]) == [0, 1]
    assert code_lengths([]) == []


def test_no_word_begins_with_another():
    words = canonical([2, 1, 3, 3])
    texts = [format(word, f"0{length}b") for word, length in zip(words, [2, 1, 3, 3])]
    assert texts == ["10", "0", "110", "111"]
    with pytest.raises(DataError, match="impossible"):
        canonical([1, 1, 1])


def test_size_lies_within_a_bit_of_the_entropy():
    torch.manual_seed(0)
    p = torch.tensor([0.6, 0.2, 0.1, 0.06, 0.04])
    symbols = torch.multinomial(p, 20000, replacement=True)
    share = symbols.bincount() / len(symbols)
    entropy = -float((share * share.log2()).sum())
    payload = 8 * (len(Huffman().encode(symbols)) - 28 - 5)
    assert entropy <= payload / len(symbols) + 1e-3
    assert payload / len(symbols) < entropy + 1
    assert payload / len(symbols) == pytest.approx(1.7, abs=0.03)  # 0.6 + 2 * 0.2 + 3 * 0.1 + 4 * 0.1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 300), max_size=200))
def test_decoding_gives_the_symbols_back(values):
    symbols = torch.tensor(values, dtype=torch.int64)
    assert torch.equal(Huffman().decode(Huffman().encode(symbols)), symbols)


def test_very_long_words_and_other_shapes():
    fibonacci = [1, 1]
    while len(fibonacci) < 20:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    symbols = torch.repeat_interleave(torch.arange(20), torch.tensor(fibonacci))
    assert max(code_lengths(fibonacci)) == 19
    assert torch.equal(Huffman().decode(Huffman().encode(symbols.to(torch.uint8)[None])), symbols)


def test_every_cut_and_every_altered_byte_is_a_clean_error():
    data = Huffman().encode(torch.tensor([0, 1, 1, 2, 5, 5, 5, 5]))
    for length in range(len(data)):
        with pytest.raises(DataError):
            Huffman().decode(data[:length])
    for place in range(len(data)):
        for flip in (1, 128):
            with pytest.raises(DataError):
                Huffman().decode(data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])
    with pytest.raises(DataError, match="too long"):
        Huffman().decode(data + b"\0")


def test_nonsense_is_refused():
    for symbols in (torch.tensor([0.5]), torch.tensor([-1]), torch.tensor([70000]), torch.tensor([True])):
        with pytest.raises(UsageError, match="symbols"):
            Huffman().encode(symbols)
    with pytest.raises(UsageError, match="negative"):
        code_lengths([1, -1])
    assert len(Huffman().encode(torch.tensor([], dtype=torch.int64))) == 28
