"""Attention heads: which positions of the query, key, value and output projections belong to which head.

A tracer sees a reshape, two matrix products and a softmax and cannot know that positions come in heads; so heads are read
from the names that implementations use, and every finding is checked numerically before it is used (see `groups`).

One item is a key/value head together with the query heads that read it (with as many key/value heads as query heads: one
head). Rows are laid out head by head; a fused projection holds all queries, then all keys, then all values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.pruning.slicing import dimensions, width

# query, key, value, output, relative to one common module; a single name before the output is a fused projection
SEPARATE = (
    ("self.query", "self.key", "self.value", "output.dense"),
    ("attention.query", "attention.key", "attention.value", "output.dense"),
    *(("q_proj", "k_proj", "v_proj", output) for output in ("o_proj", "out_proj", "dense", "c_proj", "proj")),
    *(("query", "key", "value", output) for output in ("output", "out", "proj", "dense", "out_proj")),
    *(("q", "k", "v", output) for output in ("o", "out", "proj", "output")),
    ("q_lin", "k_lin", "v_lin", "out_lin"),
    ("to_q", "to_k", "to_v", "to_out.0"),
    ("wq", "wk", "wv", "wo"),
)
FUSED = (
    ("c_attn", "c_proj"),
    *(("qkv", output) for output in ("proj", "output", "out", "out_proj", "o_proj", "projection")),
    *(("in_proj", output) for output in ("out_proj", "proj")),
    ("qkv_proj", "o_proj"),
    ("qkv_proj", "out_proj"),
    ("Wqkv", "Wo"),
    ("Wqkv", "out_proj"),
    ("query_key_value", "dense"),
)
SIZES = ("head_dim", "head_width", "attention_head_size", "head_size", "d_head", "dim_head", "key_value_proj_dim")
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
GROUPS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_heads")
WIDTHS = ("all_head_size", "split_size", "inner_dim")


@dataclass(frozen=True)
class Attention:
    """One attention block: projection paths, its sizes, and the attributes that state them: (path, name, value per item)."""

    path: str
    query: str
    key: str
    value: str
    output: str
    heads: int
    groups: int
    head_dim: int
    attributes: tuple[tuple[str, str, int], ...] = ()

    def positions(self) -> dict[tuple[str, str], Tensor]:
        """(path, axis) -> (groups, positions per item): what each item owns of every projection."""
        shared = self.heads // self.groups * self.head_dim  # query rows of one item
        query = torch.arange(self.groups * shared).reshape(self.groups, shared)
        key = torch.arange(self.groups * self.head_dim).reshape(self.groups, self.head_dim)
        if self.query == self.key:
            first, second = query.numel(), query.numel() + key.numel()
            return {(self.query, "out"): torch.cat([query, first + key, second + key], 1), (self.output, "in"): query}
        return {
            (self.query, "out"): query,
            (self.key, "out"): key,
            (self.value, "out"): key,
            (self.output, "in"): query,
        }


def find_attention(model: nn.Module) -> list[Attention]:
    """Every attention block whose projections and head count have names we know, in model order."""
    modules = dict(model.named_modules())
    found: dict[str, Attention] = {}
    for path in modules:
        for names in (*SEPARATE, *FUSED):
            paths = [f"{path}.{name}" if path else name for name in names]
            if all(p in modules and "out" in _axes(modules[p]) for p in paths):
                block = _read(modules, path, paths)
                if block is not None:
                    found.setdefault(block.query, block)
                break
    return list(found.values())


def _axes(module: nn.Module) -> set[str]:
    return set(dimensions(module).get("weight", {})) & {"in", "out"} if not isinstance(module, nn.PReLU) else set()


def _read(modules: dict[str, nn.Module], path: str, paths: list[str]) -> Attention | None:
    fused = len(paths) == 2
    query, key, value, output = (paths[0],) * 3 + (paths[1],) if fused else paths
    owners = dict.fromkeys((query.rpartition(".")[0], path))
    inner = width(modules[output], "in")
    heads = next((v for _, _, v in _whole(modules, owners, HEADS)), None)
    head_dim = next((v for _, _, v in _whole(modules, owners, SIZES)), None)
    if head_dim is None and heads:
        head_dim = inner // heads
    if not head_dim or inner % head_dim:
        return None
    heads = inner // head_dim
    if fused:
        rest = width(modules[query], "out") - inner
        keys = values = rest // 2
    else:
        if width(modules[query], "out") != inner:
            return None
        keys, values = width(modules[key], "out"), width(modules[value], "out")
    groups = keys // head_dim
    if keys != values or not groups or keys % head_dim or heads % groups:
        return None
    per_item = ((HEADS, heads), (GROUPS, groups), (WIDTHS, inner))
    attributes = tuple(
        (owner, name, total // groups)
        for names, total in per_item
        for owner, name, held in _whole(modules, owners, names)
        if held == total
    )
    return Attention(path, query, key, value, output, heads, groups, head_dim, attributes)


def _whole(modules: dict[str, nn.Module], owners, names) -> Iterator[tuple[str, str, int]]:
    """(owner path, attribute, value) for the whole-number attributes that the owners hold under these names."""
    for owner in owners:
        for name in names:
            held = vars(modules[owner]).get(name)
            if isinstance(held, int) and not isinstance(held, bool) and held > 0:
                yield owner, name, held
