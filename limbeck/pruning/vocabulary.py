"""TrimVocabulary: an embedding keeps the rows of the tokens that are used.

Most of a multilingual model's parameters embed tokens of languages that a user never writes. The tokenizer and the numbers of the tokens
stay as they were: what changes is where a token's row lies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import ArtifactError, UsageError
from limbeck.plan import Plan


class TrimmedEmbedding(nn.Module):
    """weight[place[token]]: an embedding of some of the tokens.  (...) -> (..., width)

    tokens: those that have a row, in rising order; vocabulary: of all tokens; unknown: the token whose row the others are given, one of
    `tokens`. `weight` is (tokens, width); `place` (vocabulary,) a buffer of whole numbers, which takes four bytes a token.
    """

    def __init__(self, tokens: Sequence[int], vocabulary: int, width: int, unknown: int, **kind: Any):
        super().__init__()
        self.num_embeddings, self.embedding_dim = vocabulary, width
        self.weight = nn.Parameter(torch.empty(len(tokens), width, **kind))
        kept = torch.as_tensor(tokens)
        place = torch.full((vocabulary,), int((kept == unknown).nonzero()), dtype=torch.int32)
        place[kept] = torch.arange(len(kept), dtype=torch.int32)
        self.register_buffer("place", place.to(self.weight.device))

    def forward(self, tokens: Tensor) -> Tensor:
        return nn.functional.embedding(self.place[tokens].long(), self.weight)

    def extra_repr(self) -> str:
        return f"{len(self.weight)} of {self.num_embeddings} tokens, {self.embedding_dim}"


def token_shares(batches: Iterable[Any], vocabulary: int) -> Tensor:
    """How often each token comes, as a share of all attended ones, over batches with `input_ids`: (vocabulary,), float64."""
    counts = torch.zeros(vocabulary, dtype=torch.float64)
    for batch in batches:
        ids = batch["input_ids"]
        mask = batch.get("attention_mask")
        seen = ids.flatten() if mask is None else ids[mask.bool()]
        counts += torch.bincount(seen.cpu(), minlength=vocabulary)
    return counts / counts.sum().clamp_min(1)


@dataclass(frozen=True)
class TrimVocabulary:
    """Keep the embedding rows of the tokens that a language, or a task, uses.

    tokens: those that stay; None: those whose share of the task's train tokens is at least `least` and above 0. always: tokens that
    stay in any case, such as the special ones. unknown: what any other token is read as; None: the first of `always`. path: the
    embedding; None: the largest of the model.

    The model's inputs stay the same: a token keeps its number, and `TrimmedEmbedding` finds its row. Outputs over the vocabulary are not
    trimmed. Raises UsageError for tokens outside the vocabulary, for an `unknown` that does not stay, for an embedding that shares
    its weight with another module (an output layer), and without tokens where there is no task with texts.
    Source: Abdaoui et al., "Load What You Need: Smaller Versions of Multilingual BERT", 2020, section 3; with least = 1e-6 in either of two
    languages Ansell et al., "Distilling Efficient Language-Specific Models for Cross-Lingual Transfer" (BiStil), 2023, whose authors' code
    renumbers the tokens, so that models do not take the same inputs.
    """

    tokens: Sequence[int] | None = None
    least: float = 1e-6
    always: Sequence[int] = (0,)
    unknown: int | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "always"):
            found = getattr(self, name)
            if found is None:
                continue
            if any(isinstance(token, bool) or not isinstance(token, int) or token < 0 for token in found):
                raise UsageError(f"TrimVocabulary: {name} must list token numbers from 0, not {found!r}")
            object.__setattr__(self, name, tuple(found))
        if not self.always:
            raise UsageError("TrimVocabulary: always=() leaves no token to read others as: name at least one")
        if isinstance(self.least, bool) or not 0 <= self.least < 1 or not math.isfinite(self.least):
            raise UsageError(f"TrimVocabulary: least={self.least!r} must be a share of 0 or more, below 1")

    def plan(self, model: nn.Module, task: Any = None, budget: Any = None) -> Plan:
        """Count the tokens of the train split, if they are not named; the model stays as it is."""
        path, embedding = _embedding(model, self.path)
        _require_own_weight(model, path)
        vocabulary = embedding.num_embeddings
        if self.tokens is None:
            if task is None:
                raise UsageError("TrimVocabulary counts the tokens of a task's train split: pass the task, or tokens")
            if "input_ids" not in task.example(1):
                raise UsageError("TrimVocabulary: the task's batches have no input_ids: name the tokens that stay")
            shares = token_shares(task.batches("train", 256), vocabulary)
            used = torch.nonzero((shares >= self.least) & (shares > 0)).flatten().tolist()
        else:
            used = list(self.tokens)
        kept = sorted({*used, *self.always})
        unknown = self.always[0] if self.unknown is None else self.unknown
        if kept[-1] >= vocabulary:
            raise UsageError(f"TrimVocabulary: token {kept[-1]} is outside of {path!r}, which has {vocabulary}")
        if unknown not in kept:
            raise UsageError(f"TrimVocabulary: unknown={unknown!r} must be one of the tokens that stay")
        return Plan("trim_vocabulary", {"path": path, "kept": kept, "vocabulary": vocabulary, "unknown": unknown})


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """Put a `TrimmedEmbedding` in the embedding's place. Raises ArtifactError where the model's is not what the plan was made for."""
    chosen = plan.decisions
    try:
        old = model.get_submodule(chosen["path"])
    except AttributeError:
        raise ArtifactError(f"the plan trims {chosen['path']!r}, which this {type(model).__name__} lacks") from None
    if not isinstance(old, nn.Embedding) or old.num_embeddings != chosen["vocabulary"]:
        raise ArtifactError(f"the plan trims an embedding of {chosen['vocabulary']} tokens; the model has {old}")
    kind = {"device": old.weight.device, "dtype": old.weight.dtype}
    new = TrimmedEmbedding(chosen["kept"], old.num_embeddings, old.embedding_dim, chosen["unknown"], **kind)
    with torch.no_grad():
        new.weight.copy_(old.weight[chosen["kept"]])
    new.weight.requires_grad_(old.weight.requires_grad)
    parent, _, name = chosen["path"].rpartition(".")
    setattr(model.get_submodule(parent), name, new.train(old.training))
    return model


def _embedding(model: nn.Module, path: str | None) -> tuple[str, nn.Embedding]:
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    if not found or (path is not None and path not in found):
        shown = ", ".join(found) or "none"
        raise UsageError(f"TrimVocabulary: {type(model).__name__} has no embedding {path or ''!r}; it has {shown}")
    path = path or max(found, key=lambda name: found[name].num_embeddings)
    return path, found[path]


def _require_own_weight(model: nn.Module, path: str) -> None:
    weight = model.get_submodule(path).weight
    others = [n for n, m in model.named_modules() if n != path and getattr(m, "weight", None) is weight]
    if others:
        raise UsageError(
            f"TrimVocabulary: {path!r} shares its weight with {others[0]!r}, whose outputs would lose words: trim the "
            "encoder without that layer"
        )
