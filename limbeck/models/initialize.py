"""First weights for narrow models: what flows through them keeps its size."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def unit_variance(model: nn.Module, embeddings: float = 1.0) -> nn.Module:
    """Draw the weights of linear maps and convolutions with deviation 1 / sqrt(inputs), those of embeddings with deviation `embeddings`,
    and set biases of linear maps and convolutions to 0. In place; the model is returned. A parameter of a module of its own that is called
    `positions`, as a vision transformer has it, is an embedding.

    The usual deviation of 0.02 is of this size at a thousand inputs; with a few dozen of them it makes attention almost uniform and every
    branch almost silent, and the first hundreds of steps are spent on that. A head that shares the embeddings wants them at
    1 / sqrt(width). Weights that two modules share are drawn once, as embeddings.
    """
    shared = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.normal_(std=embeddings)
        elif isinstance(module, nn.Linear) and id(module.weight) not in shared:
            module.weight.normal_(std=module.in_features**-0.5)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, (nn.Conv1d, nn.Conv2d)):
            module.weight.normal_(std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                module.bias.zero_()
        if isinstance(getattr(module, "positions", None), nn.Parameter):
            module.positions.normal_(std=embeddings)
    return model
