"""Small models and a task of random numbers for the pruning tests."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from limbeck.models import encoder, gpt, resnet, vit, wide_resnet


class RandomTask:
    """Batches that depend on their number only; two classes; the loss is a cross-entropy that never saturates."""

    def __init__(self, make):
        self.make = make

    def example(self, batch_size=1):
        return self.make(batch_size, torch.Generator().manual_seed(99))

    def batches(self, split, batch_size, *, seed=None, **_):
        assert split == "train", "only the train split may be looked at"
        for number in range(3):
            generator = torch.Generator().manual_seed(number)
            batch = self.make(batch_size, generator)
            yield {**batch, "labels": torch.randint(0, 2, (batch_size,), generator=generator)}

    def loss(self, logits, batch):
        logits = logits.reshape(len(logits), -1)[:, :10]
        return F.cross_entropy(logits / logits.detach().abs().max(), batch["labels"])


def _images(count, generator):
    return {"pixel_values": torch.randn(count, 3, 16, 16, generator=generator)}


def _tokens(count, generator):
    mask = torch.ones(count, 7, dtype=torch.long)
    mask[0, 5:] = 0
    return {"input_ids": torch.randint(0, 50, (count, 7), generator=generator), "attention_mask": mask}


IMAGES, TOKENS = RandomTask(_images), RandomTask(_tokens)


class Mixed(nn.Module):
    """Depthwise and pointwise convolutions, a concatenation of two branches, per-channel PReLU, a flatten before a Linear."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pointwise = nn.Conv2d(16, 24, 1)
        self.left = nn.Conv2d(24, 16, 1)
        self.right = nn.Conv2d(24, 8, 3, padding=1)
        self.joint = nn.BatchNorm2d(24)
        self.narrow = nn.Conv2d(24, 16, 1)
        self.slopes = nn.PReLU(16)
        self.hidden = nn.Linear(16 * 16, 32)
        self.classifier = nn.Linear(32, 4)

    def forward(self, pixel_values):
        x = F.relu(self.pointwise(F.relu6(self.depthwise(F.relu(self.norm(self.first(pixel_values)))))))
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = self.slopes(self.narrow(F.relu(self.joint(x))))
        return self.classifier(F.relu(self.hidden(F.adaptive_avg_pool2d(x, 4).flatten(1))))


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(vocab_size=50, max_position_embeddings=16, **sizes))


def bert_model():
    from transformers import BertModel

    return BertModel(bert().config)


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=3, n_head=4, n_positions=16, **tokens))


def llama(layers=3):
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=layers, intermediate_size=64, **heads)
    )


def qwen3(**settings):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    return Qwen3ForCausalLM(
        Qwen3Config(vocab_size=50, hidden_size=32, num_hidden_layers=3, intermediate_size=64, **heads, **settings)
    )


MODELS = {
    "resnet": (lambda: resnet(8), IMAGES),
    "wide_resnet": (lambda: wide_resnet(10, 1), IMAGES),
    "mixed": (Mixed, IMAGES),
    "vit": (lambda: vit(16, 4, depth=2, width=32, heads=4), IMAGES),
    "encoder": (lambda: encoder(50, 2, 16, 2, 32, 4), TOKENS),
    "gpt": (lambda: gpt(50, 16, 2, 32, 4), TOKENS),
    "bert": (bert, TOKENS),
    "bert_model": (bert_model, TOKENS),
    "gpt2": (gpt2, TOKENS),
    "llama": (llama, TOKENS),
    "qwen3": (qwen3, TOKENS),
}


def build(name):
    """A model in eval mode, weights and batch statistics far from their initial values, and its task."""
    make, task = MODELS[name]
    return restless(make(), seed=7), task


def restless(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.add_(torch.rand(buffer.shape, generator=generator) * 0.2)
    return model.eval()
