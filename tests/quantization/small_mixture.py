"""A small language model of mixtures of experts, and tokens to calibrate it with."""

import torch

from limbeck.models.mixture_of_experts import mixture_gpt


class Tokens:
    def batches(self, split, batch_size, *, limit=None, **_):
        assert split == "train"
        draws = torch.Generator().manual_seed(0)
        for _ in range(0, limit, batch_size):
            yield {"input_ids": torch.randint(0, 30, (batch_size, 8), generator=draws)}


def mixture():
    torch.manual_seed(0)
    model = mixture_gpt(30, 8, 2, 16, 2, 16, experts=4, top=2).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model
