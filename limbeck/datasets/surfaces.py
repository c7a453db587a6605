"""What text a tokenizer's tokens stand for, as bytes, so that tokens of two tokenizers can be compared."""

from __future__ import annotations

import json
from typing import Any

SPACE = "\u2581"  # how SentencePiece writes a space


def surfaces(tokenizer: Any) -> list[bytes]:
    """The bytes of every token by number; b"" for special tokens and numbers that are no token.

    Byte-level tokens are their bytes; SentencePiece's word mark is a space and <0x0A> a byte; a WordPiece that does not continue a
    word begins with a space; other tokens are their text. `tokenizer` is a fast transformers tokenizer.
    """
    kind, special = token_kind(tokenizer), set(tokenizer.all_special_ids)
    table = _byte_table() if kind == "byte_level" else {}
    vocabulary = tokenizer.get_vocab()
    added = {number for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    found = [b""] * (max(vocabulary.values()) + 1)
    for token, number in vocabulary.items():
        if number not in special and number not in added:
            found[number] = _surface(token, kind, table)
    return found


def token_kind(tokenizer: Any) -> str:
    """How a fast tokenizer writes its tokens: "byte_level", "sentencepiece", "wordpiece" or "text"."""
    decoder = json.dumps(json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder"), ensure_ascii=False)
    if '"ByteLevel"' in decoder:
        return "byte_level"
    if '"Metaspace"' in decoder or SPACE in decoder:
        return "sentencepiece"
    return "wordpiece" if '"WordPiece"' in decoder else "text"


def _surface(token: str, kind: str, table: dict[str, int]) -> bytes:
    if kind == "byte_level":
        known = all(letter in table for letter in token)
        return bytes(table[letter] for letter in token) if known else token.encode()
    if kind == "sentencepiece":
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return token.replace(SPACE, " ").encode()
    if kind == "wordpiece":
        return token[2:].encode() if token.startswith("##") else f" {token}".encode()
    return token.encode()


def _byte_table() -> dict[str, int]:
    """The letters that byte-level tokenizers write bytes with: printable bytes as they are, the others from U+0100 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}
