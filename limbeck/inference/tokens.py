"""Fewer tokens: a vision transformer drops on its way those that say what the others say too."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.models.vit import ViT


def redundancy(tokens: Tensor) -> Tensor:
    """How much a token is like all of its example's: its cosine with their mean.  (B, L, D) -> (B, L)"""
    return F.cosine_similarity(tokens, tokens.mean(1, keepdim=True), dim=-1)


class ThinnedTokens(nn.Module):
    """A vision transformer that drops its most redundant patches before some of its blocks, a little more each time.

    `forward(pixel_values)` -> logits, as the model's own. The class token always stays; among the patches those of the largest
    `redundancy` go. The submodule "kept.I" yields which tokens of the full sequence block I sees, (B, tokens) in ascending order, class
    token 0, so that an objective (`limbeck.objectives.AtTokens`) can find the teacher's tokens that belong to them.

    model: a `limbeck.models.vit`; it is the submodule "model", its blocks "model.blocks.I". drops: {block: share of all patches that go
    before it}. Raises UsageError for a block that is not there, and for shares that leave no patch.
    Source: Shi et al., "Hybrid Distillation: Connecting Masked Autoencoders with Contrastive Learners", ICLR 2024, section 3.4
    (progressive redundant token masking; no public code). The score is the one we understand the paper to use; shares are free.
    """

    def __init__(self, model: ViT, drops: Mapping[int, float]):
        super().__init__()
        if not isinstance(model, ViT):
            raise UsageError(f"ThinnedTokens thins a limbeck.models.vit, not a {type(model).__name__}")
        patches, depth = model.positions.shape[1] - 1, len(model.blocks)
        left = patches
        self.left = []  # patches that each block sees
        for block, share in drops.items():
            if block not in range(depth) or not 0 < share < 1:
                raise UsageError(
                    f"drops={dict(drops)!r}: must map blocks 0 to {depth - 1} to shares of the patches between 0 and 1"
                )
        for block in range(depth):
            left -= round(drops.get(block, 0.0) * patches)
            if left < 1:
                raise UsageError(f"drops={dict(drops)!r} leaves no patch of {patches} before block {block}")
            self.left.append(left)
        self.model = model
        self.kept = nn.ModuleList(nn.Identity() for _ in range(depth))

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.model.dropout(self.model.embed(pixel_values))
        index = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        for block, count, kept in zip(self.model.blocks, self.left, self.kept):
            if count < x.shape[1] - 1:
                order = redundancy(x[:, 1:].detach()).argsort(1)[:, :count].sort(1).values + 1
                chosen = torch.cat([torch.zeros_like(order[:, :1]), order], 1)
                x, index = x.gather(1, chosen.unsqueeze(-1).expand(-1, -1, x.shape[-1])), index.gather(1, chosen)
            kept(index)
            x = block(x)
        return self.model.head(self.model.norm(x)[:, 0])
