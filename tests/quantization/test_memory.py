"""What calibration holds: tensors are counted as they live, with the collector of garbage off, so that only references keep them."""

import contextlib
import gc

import pytest
import torch
from live_tensors import LiveTensors
from torch import nn

from limbeck.models import gpt
from limbeck.quantization import GPTQ, AffineGrid, DecoupleQ, IntegerGrid, PerGroup, Quantizer
from limbeck.quantization.adaptive_rounding import BlockReconstruction
from limbeck.quantization.gptq import reversed_factor
from limbeck.quantization.rounding import round_weights

INTEGERS, AFFINE = IntegerGrid(4, False, False), AffineGrid(2)
METHODS = {
    "gptq": (GPTQ(), Quantizer(INTEGERS, PerGroup(16))),
    "gptq with groups as they come": (GPTQ(act_order=False), Quantizer(INTEGERS, PerGroup(16))),
    "reconstruction": (BlockReconstruction(iterations=2), Quantizer(INTEGERS, PerGroup(16))),
    "decoupleq": (DecoupleQ(rounds=1, epochs=1), Quantizer(AFFINE, PerGroup(16))),
}


@contextlib.contextmanager
def no_collector():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def held(depth, examples, method):
    """Bytes at the peak and at the end, and those of the packed weights."""
    torch.manual_seed(0)
    model = gpt(40, 32, depth, 32, 4).eval()
    rounding, quantizer = METHODS[method]
    ids = torch.randint(0, 40, (examples, 32), generator=torch.Generator().manual_seed(0))
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.Linear) and "blocks" in path]
    with no_collector(), LiveTensors([*model.parameters(), *model.buffers(), ids]) as live:
        found = round_weights(model, [{"input_ids": ids}], dict.fromkeys(paths, quantizer), rounding)
        end = live.now
    packed = sum(t.nbytes for p in found[0].values() for t in p.tensors.values())
    return live.peak, end, packed + sum(t.nbytes for t in found[1].values())


@pytest.mark.parametrize("method", METHODS)
def test_of_more_blocks_only_the_packed_weights_are_held(method):
    held(2, 1, method)  # tables are made once
    for examples in (1, 32):  # weights dominate, hidden states do
        few, end, packed = held(2, examples, method)
        assert end == packed
        many, end, all_packed = held(3, examples, method)
        assert end == all_packed
        assert many - few <= all_packed - packed + 1000


def test_a_factor_takes_two_matrices():
    x = torch.randn(200, 100)
    hessian = x.T @ x
    with no_collector(), LiveTensors([hessian]) as live:
        factor = reversed_factor(hessian, torch.randperm(100), 0.01)
    assert live.peak <= 2.1 * hessian.nbytes and live.now <= 1.01 * factor.nbytes
