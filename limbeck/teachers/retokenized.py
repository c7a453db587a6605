"""RetokenizedTeacher: a language model that reads the student's text in tokens of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.files import digest
from limbeck.signals import ALIGNED, LOGITS, Signals
from limbeck.teachers.base import Around, Teacher

LOSSLESS = ("byte_level", "sentencepiece", "text")


class RetokenizedTeacher(Around):
    """A causal language model with another tokenizer than the student's, brought to the student's positions.

    The student's tokens are turned into text, the teacher's tokenizer cuts that text anew, and the teacher answers. Position i of the
    student and position j of the teacher are aligned when both have read exactly the same text: then both predict what comes next. Signals:

        logits (B, L, C)    the teacher's, in its own vocabulary, at the student's positions; zeros where no position is aligned
        aligned (B, L)      1 where one is, else 0

    teacher: answers batches of `input_ids` and `attention_mask`. student_tokenizer, teacher_tokenizer: fast transformers tokenizers,
    their folders or hub names. special: whether the teacher's text gets its special tokens (a first one, as most were trained with).
    length: most tokens of the teacher; what comes later is not aligned.

    Limits. The student's tokenizer must keep the text: byte-level, SentencePiece or characters; not WordPiece, which loses spaces. The
    teacher's may be any with offsets. Tokens that end inside a character, special tokens and padding are not aligned. A block that begins
    within a word is read as it stands. What is aligned is the context; that the next words differ in length is left to the
    objective: `MappedTokens` compares words that both have, `SortedTargets` only the shapes. For models that see both sides (masked language models)
    alignment of contexts says nothing. Raises UsageError for other signals, and for batches without `input_ids`.
    """

    def __init__(
        self,
        teacher: Teacher,
        student_tokenizer: Any,
        teacher_tokenizer: Any,
        special: bool = True,
        length: int | None = None,
    ):
        from limbeck.datasets.surfaces import surfaces, token_kind
        from limbeck.datasets.tokenize import load_tokenizer, padding_token

        own, other = (load_tokenizer(t) if isinstance(t, str) else t for t in (student_tokenizer, teacher_tokenizer))
        for whose, tokenizer in (("student", own), ("teacher", other)):
            if not getattr(tokenizer, "is_fast", False):
                raise UsageError(
                    f"RetokenizedTeacher: the {whose}'s tokenizer is no fast one: it cannot say where tokens end"
                )
        if token_kind(own) not in LOSSLESS:
            raise UsageError(
                "RetokenizedTeacher: the student's tokenizer is a WordPiece, which does not keep the text: positions cannot be aligned"
            )
        if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
            raise UsageError(f"RetokenizedTeacher: length={length!r} must be a whole number of at least 1")
        self.teacher, self.tokenizer, self.special, self.length = teacher, other, special, length
        self._surfaces, self._padding = surfaces(own), padding_token(other)
        self._vocabularies = digest([own.get_vocab(), other.get_vocab()])

    def signals(self, batch: Mapping[str, Any], names: frozenset[str]) -> Signals:
        unknown = sorted(names - {LOGITS, ALIGNED})
        if unknown:
            raise UsageError(
                f"RetokenizedTeacher gives 'logits' and 'aligned', not {unknown[0]!r}: hidden states have other positions"
            )
        if not isinstance(batch.get("input_ids"), Tensor) or batch["input_ids"].dim() != 2:
            raise UsageError(f"RetokenizedTeacher needs batch['input_ids'] (B, L); the batch has {sorted(batch)}")
        if not names:
            return Signals({})
        given, places = self._read(batch)
        device = batch["input_ids"].device
        found = {ALIGNED: (places >= 0).float().to(device)} if ALIGNED in names else {}
        if LOGITS in names:
            logits = self.teacher.signals({k: v.to(device) for k, v in given.items()}, frozenset({LOGITS})).logits
            rows = torch.arange(len(places), device=logits.device).unsqueeze(1)
            at = places.to(logits.device)
            found[LOGITS] = logits[rows, at.clamp_min(0)].masked_fill((at < 0).unsqueeze(-1), 0.0)
        return Signals({name: value for name, value in found.items() if name in names})

    def _read(self, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
        """The teacher's own batch, and for each of the student's positions (B, L) the teacher's, or -1."""
        ids, mask = batch["input_ids"].tolist(), batch.get("attention_mask")
        masks = mask.tolist() if mask is not None else [[1] * len(row) for row in ids]
        texts, ends = zip(*(self._text(row, kept) for row, kept in zip(ids, masks)))
        cut = {"truncation": True, "max_length": self.length} if self.length else {}
        encoded = self.tokenizer(
            list(texts), add_special_tokens=self.special, return_offsets_mapping=True, verbose=False, **cut
        )
        rows = encoded["input_ids"]
        width = max(1, *(len(row) for row in rows))
        tokens = torch.tensor([row + [self._padding] * (width - len(row)) for row in rows])
        counted = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        counted[:, 0] = 1  # a row without text still has to be read
        places = [
            aligned_places(own, _byte_ends(text, offsets))
            for own, text, offsets in zip(ends, texts, encoded["offset_mapping"])
        ]
        return {"input_ids": tokens, "attention_mask": counted}, torch.tensor(places)

    def _text(self, ids: Sequence[int], mask: Sequence[int]) -> tuple[str, list[int | None]]:
        """The text of a row, and for each token the byte where it ends there; None for a token that is no text."""
        pieces = [self._surfaces[i] if kept and 0 <= i < len(self._surfaces) else b"" for i, kept in zip(ids, mask)]
        whole = b"".join(pieces)
        text = whole.decode(errors="ignore")  # a block may begin and end within a character
        skipped = next((n for n in range(min(4, len(whole))) if whole[n] & 0xC0 != 0x80), 0)
        if whole[skipped:].decode(errors="replace").rstrip("\ufffd").encode() != text.encode():
            return "", [None] * len(ids)  # bytes that are no text in the middle
        ends, at = [], -skipped
        for piece in pieces:
            at += len(piece)
            ends.append(at if piece and 0 < at <= len(text.encode()) else None)
        return text, ends

    def digest(self) -> str:
        return digest(
            {
                "kind": "retokenized",
                "teacher": self.teacher.digest(),
                "vocabularies": self._vocabularies,
                "special": self.special,
                "length": self.length,
            }
        )


def aligned_places(student: Sequence[int | None], teacher: Sequence[int | None]) -> list[int]:
    """For each end of one row of tokens the place of the other row's token that ends there, or -1.

    Where several tokens of a row end at one place (the bytes of one character), the last one has read all of it.
    """
    places = {end: place for place, end in enumerate(teacher) if end is not None}
    last = {end: place for place, end in enumerate(student) if end is not None}
    return [places.get(end, -1) if end is not None and last[end] == at else -1 for at, end in enumerate(student)]


def _byte_ends(text: str, offsets: Sequence[tuple[int, int]]) -> list[int | None]:
    """Where tokens end, in bytes; None for special tokens, which cover nothing."""
    sizes = [0]
    for letter in text:
        sizes.append(sizes[-1] + len(letter.encode()))
    return [sizes[end] if end > begin else None for begin, end in offsets]
