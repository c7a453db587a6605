"""A word table from hidden states: what the first layers of an encoder make of each token, on average over contexts.

    t_v  =  ( sum of the hidden states of token v after layer k  +  a p_v )  /  ( number of its occurrences + a )

p_v is what a linear map from the token's embedding predicts (ridge regression over the tokens that were met), so that a token met
rarely leans on its embedding, and one never met is read off it. With t in the place of the word embeddings, layer k + 1
reads nearly what it is used to, and the layers 0 to k are gone: a student of the last layers starts out close to its teacher.
Most of what is lost is context, which those layers add; distillation teaches the remaining ones to do without.

The contexts are passages in which part of the tokens are replaced by ones drawn uniformly from the vocabulary
(`limbeck.datasets.words`): real sentences alone hold only a part of the vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

REPLACED = 0.35  # share of the tokens of a context that are drawn from the vocabulary
LENGTH = 128  # tokens per context at most
BATCH = 64
SMOOTHING = 1.0  # occurrences that the linear prediction counts for
RIDGE = 0.01


@torch.no_grad()
def word_states(
    transformer: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], layer: int, precision: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Sums (V, H) of the hidden states that each token has after a BERT's layer `layer`, and its occurrences (V,).

    batches: token ids and mask, both (B, L); positions where the mask is 0 do not count. precision: of the matrix products.
    """
    vocabulary = transformer.embeddings.word_embeddings.num_embeddings
    sums, counts = torch.zeros(vocabulary, transformer.config.hidden_size), torch.zeros(vocabulary)
    for ids, mask in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
            hidden = transformer.embeddings(ids)
            added = torch.zeros(mask.shape).masked_fill(mask == 0, torch.finfo(torch.float32).min)[:, None, None, :]
            for block in transformer.encoder.layer[: layer + 1]:
                hidden = block(hidden, attention_mask=added)
        kept = mask.bool()
        sums.index_add_(0, ids[kept], hidden.float()[kept])
        counts.index_add_(0, ids[kept], torch.ones(int(kept.sum())))
    return sums, counts


def word_table(sums: Tensor, counts: Tensor, embeddings: Tensor, norm: nn.LayerNorm) -> Tensor:
    """The table (V, H) that gives t_v (see above) back when `norm` normalizes its rows.

    sums (V, H), counts (V,): of `word_states`. embeddings (V, E): what predicts the states of rare tokens. norm: the last layer
    normalization of the layer whose states these are. Rows have mean 0 and variance 1, as a layer normalization leaves them.
    """
    weight, bias = norm.weight.detach(), norm.bias.detach()
    seen = counts > 0
    means = (sums / counts.clamp_min(1)[:, None] - bias) / weight
    inputs = torch.cat([embeddings, torch.ones(len(embeddings), 1)], 1).double()
    met = inputs[seen]
    gram = met.T @ met + RIDGE * torch.eye(inputs.shape[1], dtype=torch.float64)
    predicted = (inputs @ torch.linalg.solve(gram, met.T @ means[seen].double())).float()
    table = (means * counts[:, None] + SMOOTHING * predicted) / (counts + SMOOTHING)[:, None]
    return nn.functional.layer_norm(table, table.shape[-1:], eps=0.0)


@torch.no_grad()
def install_table(embeddings: nn.Module, table: Tensor, norm: nn.LayerNorm) -> None:
    """Make a BERT's embeddings give the states of `table`: position and type embeddings become 0, the norm `norm`'s."""
    embeddings.word_embeddings.weight.copy_(table)
    embeddings.position_embeddings.weight.zero_()
    embeddings.token_type_embeddings.weight.zero_()
    embeddings.LayerNorm.load_state_dict(norm.state_dict())


def contexts(tokenizer: Any, texts: Sequence[str], seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Token ids and masks (B, L) of texts, the shortest first, of whose tokens `REPLACED` are drawn from the vocabulary."""
    from limbeck.datasets.tokenize import padding_token
    from limbeck.datasets.words import ordinary_tokens, replace_words

    rows = tokenizer(list(texts), truncation=True, max_length=LENGTH, verbose=False)["input_ids"]
    rows = sorted(rows, key=len)
    draws, ordinary, padding = torch.Generator().manual_seed(seed), ordinary_tokens(tokenizer), padding_token(tokenizer)
    made = []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        ids = torch.full((len(part), len(part[-1])), padding)
        mask = torch.zeros_like(ids)
        for at, row in enumerate(part):
            ids[at, : len(row)], mask[at, : len(row)] = torch.from_numpy(np.asarray(row)), 1
        made.append((replace_words(ids, ordinary, torch.full((len(part),), REPLACED), draws), mask))
    return made


@functools.lru_cache(maxsize=1)
def table_of(folder: Path | str, layer: int, texts: tuple[str, ...], count: int) -> Tensor:
    """The table of a sentence-transformers folder's words after `layer`, over `count` train passages of the collections
    `texts`, evenly spaced. The same arguments give the same table; the last one is kept."""
    from limbeck.datasets.passages import documents, passages
    from limbeck.datasets.tokenize import load_tokenizer
    from limbeck.models.sentence_encoder import load_sentence_encoder, resolve_folder

    transformer = load_sentence_encoder(folder).transformer
    found = passages(text for name in texts for text in documents(name, "train"))
    found = [found[i * len(found) // count] for i in range(count)] if count < len(found) else found
    batches = contexts(load_tokenizer(str(resolve_folder(folder))), found)
    sums, counts = word_states(transformer, batches, layer, torch.bfloat16)
    words = transformer.embeddings.word_embeddings.weight.detach()
    return word_table(sums, counts, words, transformer.encoder.layer[layer].output.LayerNorm)
