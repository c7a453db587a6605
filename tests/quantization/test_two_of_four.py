"""2:4 integers against integers of the pruned tensor; their laws are in tests/laws."""

import copy

import pytest
import torch
from torch import nn

from limbeck.errors import ArtifactError, DataError, UsageError
from limbeck.plan import apply
from limbeck.pruning import Sparsify
from limbeck.quantization import IntegerGrid, PerChannel, PerGroup, PerTensor, Quantize, Quantizer, TwoOfFourGrid
from limbeck.quantization.contract import Packed


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerGroup(8)], ids=["tensor", "channel", "group"])
@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_it_is_the_integer_grid_of_the_two_largest(granularity, width, method):
    x = numbers(5, 24)
    q = Quantizer(TwoOfFourGrid(width), granularity, method)
    pruned = torch.zeros_like(x)
    for row in range(5):
        for start in range(0, 24, 4):
            for place in x[row, start : start + 4].abs().topk(2).indices:
                pruned[row, start + place] = x[row, start + place]
    plain = Quantizer(IntegerGrid(width), granularity, method)
    packed = q.encode(x)
    assert torch.equal(q.decode(packed), plain.decode(plain.encode(pruned)))
    assert torch.equal(q.codes(packed), plain.codes(plain.encode(pruned)))
    assert packed.codes.numel() * 8 == x.numel() * (width + 2) / 2 == x.numel() * q.grid.bits
    assert torch.equal(q.decode(q.encode(pruned)), q.decode(packed))
    assert torch.equal(q.grid.rounded(x, q), q.decode(packed))


def test_a_pruned_model_keeps_its_zeros_and_computes_what_integers_compute():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3))
    model = apply(model, Sparsify(0.5, "2:4").plan(model))
    settings = {"bits": 4, "activations": "dynamic"}
    plan = Quantize(grid="two_of_four", **settings).plan(model)
    assert list(plan.decisions["left_alone"]) == ["4"] and "multiple of 4" in plan.decisions["left_alone"]["4"]
    sparse = apply(copy.deepcopy(model), plan)
    plain = apply(copy.deepcopy(model), Quantize(only=("0", "2"), **settings).plan(model))
    x = numbers(7, 16, seed=1)
    torch.testing.assert_close(sparse(x), plain(x))
    assert (sparse[0].weight[model[0].weight == 0] == 0).all()
    assert sparse[0].packed.codes.numel() * 4 == 3 * plain[0].packed.codes.numel()


def test_what_is_not_two_of_four_is_refused():
    q = Quantizer(TwoOfFourGrid(4), PerTensor(), "minmax")
    packed = q.encode(numbers(2, 8))
    codes = packed.codes.clone()
    codes[0, -1] = 0  # both values in place 0
    with pytest.raises(ArtifactError, match="do not rise"):
        q.check(Packed(codes, packed.scale, None, packed.shape))
    codes = packed.codes.clone()
    codes[0, 0] = 0xFF
    with pytest.raises(ArtifactError, match="are not on"):
        q.check(Packed(codes, packed.scale, None, packed.shape))
    with pytest.raises(DataError, match="multiple of 4, not 6"):
        q.encode(numbers(2, 6))
    with pytest.raises(UsageError, match="width=1"):
        TwoOfFourGrid(1)
    with pytest.raises(UsageError, match="multiple of 4"):
        Quantizer(TwoOfFourGrid(4), PerGroup(6), "minmax")
