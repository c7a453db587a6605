"""The word table against naive re-computations, and students that start from it."""

import numpy as np
import pytest
import torch

from limbeck.build import build, lineage
from limbeck.datasets.tokenize import save_tokenizer, train_tokenizer
from limbeck.errors import UsageError
from limbeck.export.sentence_transformers import export_sentence_transformers
from limbeck.models import word_table as module
from limbeck.models.sentence_encoder import load_sentence_encoder, sentence_encoder, student_encoder
from limbeck.models.word_table import contexts, install_table, table_of, word_states, word_table

CONFIG = {
    "model_type": "bert", "vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 40, "max_position_embeddings": 160,
}  # fmt: skip
TEXTS = ["a red apple. ", "the sea is blue and wide. ", "one may go far. "]


def batches():
    draws = torch.Generator().manual_seed(1)
    for length in (10, 4):
        mask = torch.ones(3, length, dtype=torch.long)
        mask[0, length - 2 :] = 0
        yield torch.randint(3, 30, (3, length), generator=draws), mask


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    model = sentence_encoder(CONFIG).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("layer", [0, 2])
def test_states_are_those_that_transformers_gives_token_by_token(teacher, layer):
    sums, counts = word_states(teacher.transformer, batches(), layer)
    expected, times = torch.zeros(40, 24), torch.zeros(40)
    for ids, mask in batches():
        for row, kept in zip(ids, mask.bool()):
            alone = row[kept][None]
            with torch.no_grad():
                hidden = teacher.transformer(alone, output_hidden_states=True).hidden_states[layer + 1][0]
            for token, state in zip(alone[0].tolist(), hidden):
                expected[token] += state
                times[token] += 1
    assert torch.equal(counts, times)
    assert torch.allclose(sums, expected, atol=1e-4)


def test_the_table_is_the_mean_and_the_ridge_prediction_in_their_shares(teacher):
    norm = teacher.transformer.encoder.layer[1].output.LayerNorm
    words = teacher.transformer.embeddings.word_embeddings.weight.detach()
    sums, counts = word_states(teacher.transformer, batches(), 1)
    found = word_table(sums, counts, words, norm).double().numpy()
    weight, bias = (p.detach().double().numpy() for p in (norm.weight, norm.bias))
    seen = [v for v in range(40) if counts[v] > 0]
    states = {v: (sums[v].double().numpy() / counts[v].item() - bias) / weight for v in seen}
    inputs = np.concatenate([words.double().numpy(), np.ones((40, 1))], 1)
    # ridge regression as ordinary least squares with added rows
    rows = np.concatenate([inputs[seen], np.sqrt(module.RIDGE) * np.eye(25)])
    targets = np.concatenate([[states[v] for v in seen], np.zeros((25, 24))])
    predicted = inputs @ np.linalg.lstsq(rows, targets, rcond=None)[0]
    for v in range(40):
        n = counts[v].item()
        row = (n * states[v] + predicted[v]) / (n + 1) if v in states else predicted[v]
        row = (row - row.mean()) / row.std()
        assert np.allclose(found[v], row, atol=2e-3), v


def test_many_occurrences_leave_the_prediction_without_weight(teacher):
    norm = teacher.transformer.encoder.layer[0].output.LayerNorm
    state = norm(torch.randn(40, 24)).detach()
    table = word_table(state * 1e6, torch.full((40,), 1e6), torch.randn(40, 8), norm)
    assert torch.allclose(norm(table), state, atol=1e-3)


def test_embeddings_give_the_states_at_every_position(teacher):
    norm = teacher.transformer.encoder.layer[1].output.LayerNorm
    table = torch.nn.functional.layer_norm(torch.randn(40, 24), (24,))
    embeddings = teacher.transformer.embeddings
    install_table(embeddings, table, norm)
    ids = torch.tensor([[3, 5, 3, 7]])
    with torch.no_grad():
        assert torch.allclose(embeddings(ids)[0], norm(table[ids[0]]), atol=1e-5)


def test_contexts_hold_every_text_and_about_the_planned_share_of_drawn_words():
    tokenizer = train_tokenizer(TEXTS, "characters", framed=True)
    texts = [TEXTS[i % 3] * (1 + i % 7) for i in range(150)]
    rows = sorted((tokenizer(t, truncation=True, max_length=128)["input_ids"] for t in texts), key=len)
    made = contexts(tokenizer, texts)
    flat = [row[: int(kept.sum())].tolist() for ids, mask in made for row, kept in zip(ids, mask)]
    assert [len(row) for row in flat] == [len(row) for row in rows] and max(map(len, rows)) == 128
    pairs = [(a, b) for row, other in zip(flat, rows) for a, b in zip(row[1:-1], other[1:-1])]
    letters = len(tokenizer.get_vocab()) - 5
    assert np.mean([a != b for a, b in pairs]) == pytest.approx(0.35 * (1 - 1 / letters), abs=0.02)
    assert all(row[0] == other[0] and row[-1] == other[-1] for row, other in zip(flat, rows))
    again = contexts(tokenizer, texts)
    assert all(torch.equal(a, b) for one, two in zip(made, again) for a, b in zip(one, two))


@pytest.fixture
def folder(teacher, tmp_path, monkeypatch):
    tokenizer = train_tokenizer(TEXTS, "characters", framed=True)
    example = {"input_ids": torch.ones(1, 8, dtype=torch.long), "attention_mask": torch.ones(1, 8, dtype=torch.long)}
    export_sentence_transformers(teacher, example, tmp_path / "teacher", tokenizer=tokenizer)
    save_tokenizer(tokenizer, tmp_path / "teacher")
    monkeypatch.setattr("limbeck.datasets.passages.documents", lambda name, split: [t * 3 for t in TEXTS] * 20)
    table_of.cache_clear()
    yield tmp_path / "teacher"
    table_of.cache_clear()


def test_a_student_starts_from_the_states_and_its_lineage_needs_no_texts(folder, monkeypatch):
    student = student_encoder(folder, [2], word_states=1, train_words=True, word_passages=50).eval()
    teacher = load_sentence_encoder(folder)
    norm = teacher.transformer.encoder.layer[1].output.LayerNorm
    table = table_of(folder, 1, tuple(module_sources()), 50)
    ids = torch.tensor([[2, 7, 9, 3]])
    mask = torch.ones_like(ids)
    with torch.no_grad():
        hidden = teacher.transformer.encoder.layer[2](norm(table[ids]), attention_mask=None)
        expected = torch.nn.functional.normalize(hidden.mean(1), dim=-1)
        assert torch.allclose(student(ids, mask), expected, atol=1e-5)
    assert all(p.requires_grad for p in student.parameters())
    table_of.cache_clear()
    twin = student_encoder(folder, [2], word_states=1, word_passages=50)
    assert all(torch.equal(a, b) for a, b in zip(student.state_dict().values(), twin.state_dict().values()))
    monkeypatch.setattr(module, "table_of", None)
    again = build(lineage(student).factory).eval()
    again.load_state_dict(student.state_dict())
    with torch.no_grad():
        assert torch.equal(again(ids, mask), student(ids, mask))


def module_sources():
    from limbeck.datasets.passages import SOURCES

    return SOURCES


def test_a_layer_that_ignores_its_surroundings_is_replaced_exactly(folder):
    """Without attention and positions a token's state is the same wherever it stands: nothing is lost."""
    teacher = load_sentence_encoder(folder)
    with torch.no_grad():
        teacher.transformer.embeddings.position_embeddings.weight.zero_()
        for block in teacher.transformer.encoder.layer[:2]:
            block.attention.output.dense.weight.zero_()
    tokenizer = train_tokenizer(TEXTS, "characters", framed=True)
    sums, counts = word_states(teacher.transformer, contexts(tokenizer, TEXTS * 40), 1)
    norm, words = teacher.transformer.encoder.layer[1].output.LayerNorm, teacher.transformer.embeddings.word_embeddings
    counts, sums = counts * 1e6, sums * 1e6
    table = word_table(sums, counts, words.weight.detach(), norm)
    ids = tokenizer(TEXTS[1], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = teacher.transformer(ids, output_hidden_states=True).hidden_states[2]
        assert torch.allclose(norm(table[ids]), expected, atol=1e-3)


def test_settings_are_checked(folder):
    for settings, message in (({"word_states": 3}, "word_states must be a layer from 0 to 2"),
                              ({"word_states": True}, "word_states must be"),
                              ({"word_states": 1, "word_passages": 0}, "word_passages must be")):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            student_encoder(folder, [2], **settings)
