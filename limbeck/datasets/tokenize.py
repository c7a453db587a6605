"""Tokenizers: those of transformers folders, or one trained on the texts of a train split. All are transformers tokenizers,
saved as JSON (`save_tokenizer`) and loaded again from that folder (`load_tokenizer`)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from limbeck.errors import DataError, UsageError
from limbeck.files import write_bytes

KINDS = ("characters", "bpe")
FRAME = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a transformers folder or hub name; code from the hub is never run. Raises DataError without one."""
    from transformers import AutoTokenizer

    folder = Path(name).expanduser()
    if folder.is_file():
        raise DataError(f"tokenizer {name!r} is a file: give the folder that holds tokenizer.json")
    try:
        return AutoTokenizer.from_pretrained(
            str(folder) if folder.is_dir() else name, trust_remote_code=False, local_files_only=folder.is_dir()
        )
    except Exception as error:  # transformers raises many kinds for a folder or name that has no tokenizer
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"no tokenizer could be loaded from {name!r}: {reason}. Use a folder with tokenizer.json, a hub name when "
            f"online, or train one: {', '.join(KINDS)}"
        ) from error


def save_tokenizer(tokenizer: Any, folder: Path | str) -> None:
    """Write a tokenizer's JSON files into a folder, from which `load_tokenizer` and transformers load it."""
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer.save_pretrained(temporary)
        for file in sorted(Path(temporary).iterdir()):
            write_bytes(Path(folder) / file.name, file.read_bytes())


def train_tokenizer(texts: Iterable[str], kind: str, vocabulary: int = 4096, framed: bool = False) -> Any:
    """Train a tokenizer; the same texts give the same one.

    kind: "characters", one token per character seen, others unknown; or "bpe", byte-level, where nothing is unknown, of at
    most `vocabulary` tokens, specials included. framed: for sentences rather than running text: lower-cased, and put into
    "[CLS] ... [SEP]". Raises UsageError for another kind or a vocabulary that is too small, DataError for no text.
    """
    from tokenizers import normalizers, processors

    if kind not in KINDS:
        raise UsageError(f"tokenizer must be one of {', '.join(KINDS)} or a transformers folder, not {kind!r}")
    if kind == "bpe" and (isinstance(vocabulary, bool) or not isinstance(vocabulary, int) or vocabulary < 300):
        raise UsageError(f"vocabulary must be at least 300 (256 bytes, special tokens, merges), not {vocabulary!r}")
    texts = list(texts)
    if not any(texts):
        raise DataError("there is no text to train a tokenizer on")
    texts = [text.lower() for text in texts] if framed else texts
    backend, unknown = (_characters if kind == "characters" else _bpe)(texts, vocabulary, FRAME if framed else ())
    if not framed:
        return _wrapped(backend, unk_token=unknown, pad_token=unknown, eos_token=unknown)
    backend.normalizer = normalizers.Lowercase()
    ends = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ends
    )
    return _wrapped(backend, **{f"{name.strip('[]').lower()}_token": name for name in FRAME})


def _characters(texts: Sequence[str], vocabulary: int, special: Sequence[str]) -> tuple[Any, str]:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    unknown = "[UNK]" if special else "<unk>"
    found = [*(special or (unknown,)), *sorted(set().union(*map(set, texts)))]
    backend = Tokenizer(models.WordLevel({token: place for place, token in enumerate(found)}, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return backend, unknown


def _bpe(texts: Sequence[str], vocabulary: int, special: Sequence[str]) -> tuple[Any, str]:
    """Byte-level pair encoding. The alphabet is fixed beforehand, so that token numbers do not depend on chance."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    end = "[UNK]" if special else "<|endoftext|>"
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special or (end,)),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend, end


def _wrapped(backend: Any, **special: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)


def padding_token(tokenizer: Any) -> int:
    """The token that fills up a row: its padding token, else its end token, else 0 (masked or ignored in any case)."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    return 0


def text_column(rows: Any, name: str, split: str, column: str) -> list[str]:
    """A column of texts. Raises DataError for a missing column or the first value that is not a text."""
    if column not in rows.column_names:
        raise DataError(f"split {split!r} of data set {name!r} has no column {column!r}, only {rows.column_names}")
    texts = list(rows.select_columns(column).with_format(None)[:][column])
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                f"split {split!r} of data set {name!r}: row {row} of column {column!r} is {text!r}, no text"
            )
    return texts
