"""The vocabulary of a transformers tokenizer in a GGUF file.

| tokenizer                                  | in the file | how llama.cpp splits text                                    |
|--------------------------------------------|-------------|--------------------------------------------------------------|
| byte-level BPE with a known way of cutting | "gpt2"      | by the same merges, after the same cut (gpt-2, llama-3, qwen2) |
| one token per character                    | "rwkv"      | the longest token that fits, here always one character       |
| none                                       | "none"      | not at all: callers give token numbers                       |
"""

from __future__ import annotations

import json
from typing import Any

from limbeck.errors import ExportError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
SPECIALS = ("bos", "eos", "unk", "pad")
# how llama.cpp calls what comes before the merges -> the pattern that splits the text; None: that of ByteLevel itself
CUTS = {
    None: "gpt-2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
}


def add_tokenizer(writer: Any, tokenizer: Any, config: Any) -> None:
    """Write the tokens, their kinds and how text is split; nothing but the special tokens of the config where there is no tokenizer.

    Raises ExportError for a tokenizer of another kind, and for one with more tokens than the model has.
    """
    if tokenizer is None:
        writer.add_tokenizer_model("none")
        for name in SPECIALS:
            _special(writer, name, getattr(config, f"{name}_token_id", None))
        return
    if len(tokenizer) > config.vocab_size:
        raise ExportError(f"the tokenizer has {len(tokenizer)} tokens, the model knows {config.vocab_size}")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {}
    tokens = {number: token for token, number in tokenizer.get_vocab().items()}
    added = dict(tokenizer.added_tokens_decoder)
    kinds = []
    for number in range(config.vocab_size):
        tokens.setdefault(number, f"[UNUSED{number}]")
        special = number in added and (CONTROL if added[number].special else USER_DEFINED)
        kinds.append(special or (NORMAL if number < len(tokenizer) else UNUSED))
    names = [tokens[number] for number in range(config.vocab_size)]
    if (cut := _cut(rules)) is not None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(cut)
        merges = rules["model"]["merges"]
        writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    elif _by_character(rules, names, kinds):
        writer.add_tokenizer_model("rwkv")
        names = ["".join(f"\\x{byte:02x}" for byte in name.encode()) for name in names]
    else:
        raise ExportError(
            "this tokenizer has no GGUF form here: byte-level BPE as of GPT-2, Llama 3 and Qwen 2 has, and one token per character. Give "
            "tokenizer=False (in a recipe: tokenizer: false) for a file that knows token numbers only"
        )
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    for name in SPECIALS:
        _special(writer, name, getattr(tokenizer, f"{name}_token_id", None))
    writer.add_add_bos_token(_adds_bos(tokenizer))


def _special(writer: Any, name: str, number: Any) -> None:
    if isinstance(number, int):
        getattr(writer, f"add_{name}_token_id")(number)


def _adds_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _cut(rules: dict[str, Any]) -> str | None:
    """The name of a byte-level BPE's way of cutting text; None for other tokenizers and unknown ways."""
    model, before = rules.get("model") or {}, rules.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    if model.get("type") != "BPE" or rules.get("normalizer") not in (None, {"type": "NFC"}):
        return None
    if steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    if len(steps) == 1:
        return CUTS[None] if steps[0].get("use_regex", True) else None
    pattern = steps[0].get("pattern", {}).get("Regex")
    split = len(steps) == 2 and steps[0].get("type") == "Split" and not steps[1].get("use_regex", True)
    return CUTS.get(pattern) if split and pattern is not None else None


def _by_character(rules: dict[str, Any], names: list[str], kinds: list[int]) -> bool:
    word_level = (rules.get("model") or {}).get("type") == "WordLevel" and rules.get("normalizer") is None
    return word_level and all(len(name) == 1 for name, kind in zip(names, kinds) if kind == NORMAL)
