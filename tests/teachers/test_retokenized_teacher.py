"""A teacher with another tokenizer: which positions are aligned, what it says there, and a student that learns from it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.datasets.surfaces import surfaces, token_kind
from limbeck.datasets.tokenize import save_tokenizer, train_tokenizer
from limbeck.errors import UsageError
from limbeck.models import gpt
from limbeck.objectives import CrossEntropy, MappedTokens, SoftTargets, SortedTargets
from limbeck.objectives.mapping import aligned_words
from limbeck.teachers import FrozenTeacher, RetokenizedTeacher
from limbeck.teachers.retokenized import aligned_places
from limbeck.training import Distil

TEXT = "the cat sat on the mat and the café was über nice. " * 4
NAMES = frozenset({"logits", "aligned"})


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Characters, a byte-level and a WordPiece tokenizer, and the folders of the first two."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = {kind: train_tokenizer([TEXT], kind, 320) for kind in ("characters", "bpe")}
    vocabulary = {
        t: i for i, t in enumerate(("[UNK]", "[CLS]", "the", "cat", "ma", "##t", "on", "sat", "##é", "nice", "."))
    }
    piece = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    piece.pre_tokenizer, piece.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    made["wordpiece"] = PreTrainedTokenizerFast(tokenizer_object=piece, unk_token="[UNK]", cls_token="[CLS]")
    for kind in ("characters", "bpe"):
        folder = tmp_path_factory.mktemp(kind)
        save_tokenizer(made[kind], folder)
        made[f"{kind}-folder"] = str(folder)
    return made


class Says(nn.Module):
    """Logits that tell the position and the token: (B, L, 4)."""

    def forward(self, input_ids, attention_mask):
        place = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        return torch.stack([place, input_ids, attention_mask, torch.ones_like(place)], -1).float()


def test_surfaces(tokenizers):
    assert [token_kind(tokenizers[k]) for k in ("characters", "bpe", "wordpiece")] == [
        "text",
        "byte_level",
        "wordpiece",
    ]
    for kind in ("characters", "bpe"):
        tokenizer = tokenizers[kind]
        found = surfaces(tokenizer)
        ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
        assert b"".join(found[i] for i in ids).decode() == TEXT
        assert found[tokenizer.eos_token_id] == b""
    piece = tokenizers["wordpiece"]
    found = {token: surfaces(piece)[i] for token, i in piece.get_vocab().items()}
    assert found["the"] == b" the" and found["##t"] == b"t" and found["[CLS]"] == b""


def test_places_by_hand():
    #        a  bc  (special)  d, in three bytes    e
    student = [1, 3, None, 4, 5, 6, 7]
    teacher = [None, 1, 2, 3, 6, 6, 7]
    assert aligned_places(student, teacher) == [1, 3, -1, -1, -1, 5, 6]
    assert aligned_places([2, 2, 3], [2, 3]) == [-1, 0, 1]  # the second token ending at 2 has read the whole character


def test_contexts_are_the_same_text(tokenizers):
    own, other = tokenizers["bpe"], tokenizers["characters"]
    teacher = RetokenizedTeacher(FrozenTeacher(Says()), own, other)
    ids = torch.tensor(own(TEXT, add_special_tokens=False)["input_ids"])
    found = teacher.signals({"input_ids": ids[None]}, NAMES)
    places = found.logits[0, :, 0].long()
    for at in range(len(ids)):
        if found["aligned"][0, at]:
            read = other.decode(other(TEXT, add_special_tokens=False)["input_ids"][: places[at] + 1])
            assert read == own.decode(ids[: at + 1])
    assert float(found["aligned"].mean()) > 0.9  # all but what ends inside a character
    assert (found.logits[0][found["aligned"][0] == 0] == 0).all()


def test_same_tokenizer_is_the_teacher_itself(tokenizers):
    own = tokenizers["characters"]
    torch.manual_seed(0)
    model = gpt(len(own), 16, depth=1, width=16, heads=2)
    ids = torch.tensor(own([TEXT[:16], TEXT[7:23]], add_special_tokens=False)["input_ids"])
    found = RetokenizedTeacher(FrozenTeacher(model), own, own, special=False).signals({"input_ids": ids}, NAMES)
    assert torch.allclose(found.logits, FrozenTeacher(model).signals({"input_ids": ids}, NAMES - {"aligned"}).logits)
    assert bool((found["aligned"] == 1).all())


def test_padding_special_tokens_broken_characters_and_rows_without_text(tokenizers):
    own, other = tokenizers["bpe"], tokenizers["characters"]
    teacher = RetokenizedTeacher(FrozenTeacher(Says()), own, other)
    end = own.eos_token_id
    split = own("é", add_special_tokens=False)["input_ids"]
    plain = own("on", add_special_tokens=False)["input_ids"]
    accent = [i for i, surface in enumerate(surfaces(own)) if surface in (b"\xc3", b"\xa9")]
    accent.sort(key=lambda i: surfaces(own)[i], reverse=True)  # the two bytes of é, first 0xC3
    assert len(accent) == 2 and split
    row = [accent[1], *plain, end, *accent, plain[0]]
    batch = {"input_ids": torch.tensor([row, [end] * len(row)]), "attention_mask": torch.ones(2, len(row)).long()}
    batch["attention_mask"][0, -1] = 0
    found = teacher.signals(batch, NAMES)["aligned"]
    wanted = [0.0, *[1.0] * len(plain), 0.0, 0.0, 1.0, 0.0]
    assert found[0].tolist() == wanted and found[1].sum() == 0


def test_a_shorter_teacher_aligns_what_it_has_read(tokenizers):
    own = tokenizers["characters"]
    ids = torch.tensor([own(TEXT[:20], add_special_tokens=False)["input_ids"]])
    cut = RetokenizedTeacher(FrozenTeacher(Says()), own, tokenizers["bpe"], length=3).signals({"input_ids": ids}, NAMES)
    assert 1 <= int(cut["aligned"].sum()) <= 3


def test_words_that_are_the_same_text(tokenizers):
    names = tokenizers["characters-folder"], tokenizers["bpe-folder"]
    own, other = tokenizers["characters"], tokenizers["bpe"]
    mapping = aligned_words(*names)
    for token, number in own.get_vocab().items():
        found = mapping[number]
        if token == "<unk>" or (len(token.encode()) > 1 and found is None):
            continue  # a character of two bytes may be no token of the other
        assert surfaces(other)[found] == token.encode()


@pytest.mark.parametrize("sorted_", [False, True])
def test_a_student_learns_from_it(tokenizers, sorted_):
    names = tokenizers["characters-folder"], tokenizers["bpe-folder"]
    torch.manual_seed(0)
    student = gpt(len(tokenizers["characters"]), 24, depth=1, width=16, heads=2)
    model = gpt(len(tokenizers["bpe"]), 24, depth=1, width=16, heads=2)
    with torch.no_grad():
        model.head.weight.mul_(200.0)  # a teacher that is sure of something
    soft = SortedTargets(aligned="aligned") if sorted_ else MappedTokens(SoftTargets(1.0), *names)
    procedure = Distil(student, RetokenizedTeacher(FrozenTeacher(model), *names), 1e-9 * CrossEntropy() + soft)
    ids = torch.tensor(tokenizers["characters"]([TEXT[:25], TEXT[9:34]], add_special_tokens=False)["input_ids"])
    batch = {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}
    procedure.prepare(batch, torch.device("cpu"))
    optimizer = torch.optim.AdamW(student.parameters(), 1e-2)
    values = []
    for _ in range(12):
        loss = procedure.step(batch, None)["main"]
        values.append(float(loss.parts[soft.name]))
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
    assert 0 < values[-1] < values[0]
    assert all(p.grad is None for p in model.parameters())


def test_refusals(tokenizers):
    inner = FrozenTeacher(Says())
    with pytest.raises(UsageError, match="WordPiece"):
        RetokenizedTeacher(inner, tokenizers["wordpiece"], tokenizers["bpe"])
    with pytest.raises(UsageError, match="length=0"):
        RetokenizedTeacher(inner, tokenizers["bpe"], tokenizers["bpe"], length=0)
    teacher = RetokenizedTeacher(inner, tokenizers["bpe"], tokenizers["wordpiece"])
    with pytest.raises(UsageError, match="other positions"):
        teacher.signals({"input_ids": torch.ones(1, 2).long()}, frozenset({"blocks.0"}))
    with pytest.raises(UsageError, match="input_ids"):
        teacher.signals({"pixel_values": torch.ones(1, 2)}, NAMES)
    assert teacher.digest() != RetokenizedTeacher(inner, tokenizers["bpe"], tokenizers["bpe"]).digest()
    assert not teacher.changes and teacher.modules() == {}
