"""Models that the tables of equivalence know, the tasks they run on, and the transforms with small settings."""

import pytest
import torch
from torch import nn

from limbeck.models import encoder, gpt, vit
from limbeck.models.mixture_of_experts import mixture_gpt
from limbeck.quantization import AWQ, Equalize, Rotate, SmoothQuant
from limbeck.signals import call, first_tensor

transformers = pytest.importorskip("transformers")
EVERY = ("norm", "value", "factor", "final", "relu")


class Task:
    def __init__(self, images):
        self.images = images

    def batches(self, split, batch_size, *, limit=None, **_):
        assert split == "train"
        draws = torch.Generator().manual_seed(0)
        for _ in range(0, min(limit, 32), batch_size):
            if self.images:
                yield {"pixel_values": torch.randn(batch_size, 3, 8, 8, generator=draws)}
            else:
                yield {"input_ids": torch.randint(0, 40, (batch_size, 9), generator=draws)}


def llama():
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=40, num_hidden_layers=2, bos_token_id=1, eos_token_id=2, **sizes)
    return transformers.LlamaForCausalLM(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=16, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config)


def transformers_vit():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    return transformers.ViTForImageClassification(transformers.ViTConfig(image_size=8, patch_size=4, **sizes))


def bert():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    return transformers.BertModel(transformers.BertConfig(vocab_size=40, **sizes))


def convolutions():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten())
    return nn.Sequential(model, nn.Linear(4, 5), nn.LeakyReLU(), nn.Linear(5, 2))


MODELS = {
    "llama": llama,
    "gpt2": gpt2,
    "transformers_vit": transformers_vit,
    "bert": bert,
    "vit": lambda: vit(8, 4, 2, depth=2, width=32, heads=4, distilled=True),
    "encoder": lambda: encoder(40, 2, 16, 2, 32, 4),
    "gpt": lambda: gpt(40, 16, 2, 24, 4),
    "rotary": lambda: gpt(40, 16, 2, 24, 4, rotary=True, tied=False),
    "mixture": lambda: mixture_gpt(40, 16, 2, 16, 4, experts=3, top=2),
    "convolutions": convolutions,
}
IMAGES = ("transformers_vit", "vit", "convolutions")
TRANSFORMS = {
    "smooth": SmoothQuant(0.7, EVERY, batch_size=8),
    "awq": AWQ(3, "channel", kinds=("norm", "value", "factor", "final"), batch_size=8),
    "hadamard": Rotate(),
    "random": Rotate("random", seed=3),
    "equalize": Equalize(("relu", "value", "factor")),
}
# what the tables know of each model: folds by kind, and whether its residual stream can be rotated
KNOWN = {
    "llama": ({"norm": 4, "value": 2, "factor": 2, "final": 1}, True),
    "gpt2": ({"norm": 4, "value": 2}, True),
    "transformers_vit": ({"norm": 4, "value": 2, "final": 1}, True),
    "bert": ({"value": 2}, False),
    "vit": ({"norm": 4, "value": 2, "final": 1}, True),
    "encoder": ({"norm": 4, "value": 2, "final": 1}, True),
    "gpt": ({"norm": 4, "value": 2}, True),
    "rotary": ({"norm": 4, "value": 2, "final": 1}, True),
    "mixture": ({"norm": 4, "value": 2}, True),
    "convolutions": ({"relu": 2}, False),
}


def made(name):
    torch.manual_seed(5)
    model = MODELS[name]().eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def outputs(model, batch):
    with torch.no_grad():
        return first_tensor(call(model, batch))
