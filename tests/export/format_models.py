"""Small models of transformers with quantized weights, for the tests of formats."""

import copy

import torch

from limbeck.models import transformer
from limbeck.plan import apply
from limbeck.quantization import Quantize

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 64}
IDS = torch.arange(14).reshape(2, 7) * 3 % 64
CONFIGS = {
    "llama": {"model_type": "llama", "hidden_size": 64, "num_key_value_heads": 2, **SIZES},
    "mistral": {"model_type": "mistral", "hidden_size": 64, "num_key_value_heads": 2, "sliding_window": None, **SIZES},
    "qwen2": {"model_type": "qwen2", "hidden_size": 64, "num_key_value_heads": 2, "tie_word_embeddings": True, **SIZES},
    "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 32},
    "bert": {"model_type": "bert", "hidden_size": 64, "max_position_embeddings": 32, **SIZES},
}


def model_of(name, seed=0, **settings):
    """A model with random weights, biases included."""
    torch.manual_seed(seed)
    auto = "AutoModelForSequenceClassification" if name == "bert" else "AutoModelForCausalLM"
    model = transformer(auto, CONFIGS[name] | settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


class Batches:
    """As much of a task as calibration reads."""

    def batches(self, split, batch_size, *, limit=None, **_):
        yield {"input_ids": IDS}


def quantized(model, **settings):
    """The model after one quantize step; weight-only unless settings say otherwise."""
    model = copy.deepcopy(model)
    return apply(model, Quantize(**{"activations": None, **settings}).plan(model, Batches())).eval()


def quantized_modules(model):
    return {path: module for path, module in model.named_modules() if getattr(module, "limbeck_quantized", False)}
