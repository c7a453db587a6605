"""Segments and layer Hessians, against hooks on models that are quantized by hand."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.errors import DataError
from limbeck.models import encoder, gpt, resnet, vit
from limbeck.quantization.chains import order
from limbeck.quantization.hessian import LayerHessian, damped, input_rows, matrix, output_error, write_matrix
from limbeck.quantization.streaming import segments
from limbeck.signals import call, first_tensor

TOKENS = torch.randint(0, 40, (6, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.ones(6, 9, dtype=torch.long)
MASK[::2, 6:] = 0
IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                                        intermediate_size=48, vocab_size=40))  # fmt: skip


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=3, n_head=2, vocab_size=40, n_positions=16))


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48,
                                                    vocab_size=40))  # fmt: skip


def t5():
    from transformers import T5Config, T5Model

    return T5Model(
        T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4, vocab_size=40)
    )


def vit_of_transformers():
    from transformers import ViTConfig, ViTModel

    return ViTModel(
        ViTConfig(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48, image_size=8, patch_size=4
        )
    )


class MixedExperts(nn.Module):
    """A model of our own making: blocks with a list of experts inside, of which each token takes one."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.experts = nn.Linear(8, 3), nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

        def forward(self, x):
            chosen = self.gate(x).argmax(-1)
            out = torch.zeros_like(x)
            for index, expert in enumerate(self.experts):
                if (chosen == index).any():
                    out[chosen == index] = expert(x[chosen == index])
            return x + torch.tanh(out)

    def __init__(self):
        super().__init__()
        self.first, self.layers, self.last = (
            nn.Linear(3, 8),
            nn.ModuleList(self.Block() for _ in range(3)),
            nn.Linear(8, 2),
        )

    def forward(self, pixel_values):
        x = self.first(pixel_values.flatten(2).transpose(1, 2))
        for block in self.layers:
            x = block(x)
        return self.last(x.mean(1))


TEXT, PICTURES = {"input_ids": TOKENS, "attention_mask": MASK}, {"pixel_values": IMAGES}
MODELS = {
    "gpt": (lambda: gpt(40, 16, 3, 32, 4, tied=False), TEXT, ["blocks"]),
    "encoder": (lambda: encoder(40, 2, 16, 3, 32, 4), TEXT, ["blocks"]),
    "vit": (lambda: vit(8, 4, 2, depth=3, width=32, heads=4), PICTURES, ["blocks"]),
    "resnet": (lambda: resnet(14, 2), PICTURES, ["layer1", "layer2", "layer3"]),
    "perceptron": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 4)), PICTURES, []),
    "experts": (MixedExperts, PICTURES, ["layers"]),
    "llama": (llama, TEXT, ["model.layers"]),
    "gpt2": (gpt2, TEXT, ["transformer.h"]),
    "bert": (bert, TEXT, ["bert.encoder.layer"]),
    "t5": (t5, {"input_ids": TOKENS, "attention_mask": MASK, "decoder_input_ids": TOKENS[:, :5]}, ["encoder.block", "decoder.block"]),
    "vit_of_transformers": (vit_of_transformers, PICTURES, None),
}  # fmt: skip


def layers(model):
    from limbeck.quantization.quantize import Quantize

    return list(Quantize(activations=None)._choose(model)[0])


def made(name):
    torch.manual_seed(1)
    model = MODELS[name][0]().eval()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    whole = MODELS[name][1]
    return model, [{k: v[:4] for k, v in whole.items()}, {k: v[4:] for k, v in whole.items()}]


def coarse(weight):
    """Something that is plainly not the weight."""
    step = weight.abs().max() / 2
    return torch.round(weight / step) * step


@pytest.mark.parametrize("name", MODELS)
def test_each_layer_sees_what_the_quantized_layers_before_it_give(name):
    """Walked in segments and stages, every module's inputs are those of the whole model, quantized by hand up to there."""
    model, batches = made(name)
    before = copy.deepcopy(model.state_dict())
    hand, paths, walked = copy.deepcopy(model), layers(model), []
    for segment in segments(model, batches, paths):
        for stage in segment.stages():
            found, expected = {}, {}
            segment.visit(stage, lambda path, x, mask, found=found: found.setdefault(path, []).append(x))
            handles = [
                hand.get_submodule(path).register_forward_pre_hook(
                    lambda _, args, path=path, expected=expected: expected.setdefault(path, []).append(args[0])
                )
                for path in stage
            ]
            with torch.no_grad():
                for batch in batches:
                    call(hand, batch)
            for handle in handles:
                handle.remove()
            for path in stage:
                assert len(found.get(path, [])) == len(expected.get(path, [])), path
                for a, b in zip(found.get(path, []), expected.get(path, [])):
                    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
                weight = coarse(matrix(hand.get_submodule(path)))
                segment.write(path, weight)
                write_matrix(hand.get_submodule(path), weight)
                walked.append(path)
    assert sorted(walked) == sorted(paths)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in model.modules())


@pytest.mark.parametrize("name", MODELS)
def test_chains_are_found_and_their_targets_are_the_float_models(name):
    model, batches = made(name)
    paths, expected = layers(model), MODELS[name][2]
    parts = order(model, batches[0], paths)
    chains = [part for part in parts if not isinstance(part, list)]
    if expected is not None:
        assert [chain.path for chain in chains] == expected
    assert chains or name == "perceptron"
    outputs = {}
    for segment in segments(model, batches, paths, targets=True):
        if segment.path is not None:
            outputs[segment.path] = segment.targets
        for path in segment.paths:
            segment.write(path, coarse(matrix(segment.module(path))))
    for path, found in outputs.items():
        seen = []
        handle = model.get_submodule(path).register_forward_hook(
            lambda _, __, out, seen=seen: seen.append(first_tensor(out))
        )
        with torch.no_grad():
            for batch in batches:
                call(model, batch)
        handle.remove()
        for a, b in zip(found, seen):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_queries_keys_and_values_are_one_stage():
    model, batches = made("llama")
    segment = next(s for s in segments(model, batches, layers(model)) if s.path)
    names = [[path.rpartition(".")[2] for path in stage] for stage in segment.stages()]
    assert names == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]


def test_a_walk_that_is_given_up_leaves_the_model_as_it_was():
    model, batches = made("vit")
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.train().modules()]
    for segment in segments(model, batches, layers(model)):
        segment.write(segment.paths[0], coarse(matrix(segment.module(segment.paths[0]))))
        break
    del segment
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes


def test_a_list_whose_members_do_not_feed_each_other_is_no_chain():
    class Exits(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 4)
            self.heads = nn.ModuleList(nn.Sequential(nn.Linear(4, 2)) for _ in range(3))

        def forward(self, x):
            return sum(head(self.body(x)) for head in self.heads)

    model = Exits()
    assert order(model, {"x": torch.randn(2, 4)}, layers(model)) == [["body", "heads.0.0", "heads.1.0", "heads.2.0"]]


def test_no_batch_is_said():
    with pytest.raises(DataError, match="no batch"):
        next(segments(nn.Linear(2, 2), [], [""]))


CONVOLUTIONS = {
    "plain": nn.Conv2d(4, 6, 3, padding=1),
    "stride": nn.Conv2d(4, 6, (3, 2), stride=2, padding=(1, 0), bias=False),
    "same": nn.Conv2d(4, 6, 4, padding="same", dilation=2),
    "groups": nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=4),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_unfolded_rows_times_the_matrix_are_the_convolution(name):
    module, x = CONVOLUTIONS[name], torch.randn(3, 4, 9, 9)
    rows = input_rows(module, x)
    weight = matrix(module).unflatten(0, (module.groups, -1))
    with torch.no_grad():
        expected = F.conv2d(
            F.pad(x, module._reversed_padding_repeated_twice),
            module.weight,
            None,
            module.stride,
            0,
            module.dilation,
            module.groups,
        )
    out = (rows @ weight.transpose(1, 2)).movedim(0, 1).flatten(1)  # positions, out
    torch.testing.assert_close(out, expected.movedim(1, -1).flatten(0, 2), rtol=1e-4, atol=1e-5)


def test_hessians_are_those_of_the_output_error_and_leave_hidden_positions_out():
    module, x = nn.Linear(5, 3), torch.randn(4, 6, 5)
    mask = torch.rand(4, 6) > 0.4
    hessian = LayerHessian(module, torch.float64)
    hessian.update(x[:2], mask[:2])
    hessian.update(x[2:].flatten(0, 1), mask[2:])  # experts see flattened tokens
    kept = x[mask].double()
    assert hessian.positions == len(kept)
    torch.testing.assert_close(hessian.value[0], 2 / len(kept) * kept.T @ kept)
    difference = torch.randn(3, 5).double()
    error = (kept @ difference.T).square().sum(0)
    torch.testing.assert_close(output_error(difference, hessian.value) * len(kept) / 2, error)
    with pytest.raises(DataError, match="NaN or infinite"):
        hessian.update(torch.full((1, 5), torch.inf))
    with pytest.raises(DataError, match="no calibration batch"):
        _ = LayerHessian(module).value


def test_damping_adds_a_share_of_the_mean():
    hessian = torch.diag(torch.tensor([1.0, 3.0]))
    assert torch.equal(damped(hessian, 0.5), torch.diag(torch.tensor([2.0, 4.0])))
    assert torch.equal(damped(torch.zeros(2, 2), 0.5), torch.eye(2))


def test_matrices_come_back():
    for module in (nn.Linear(3, 2), nn.Conv2d(4, 6, 3, groups=2), gpt2().transformer.h[0].mlp.c_fc):
        weight = matrix(module)
        write_matrix(module, weight + 1)
        assert torch.equal(matrix(module), weight + 1)
