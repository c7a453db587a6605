"""The retrieval task against scikit-learn, a naive re-computation and hand-made collections."""

import math

import numpy as np
import pytest
import torch

from limbeck.datasets.collections import Collection
from limbeck.datasets.tokenize import train_tokenizer
from limbeck.errors import DataError, UsageError
from limbeck.tasks.retrieval import Retrieval, ndcg, rank

TEXTS = [
    "a red apple",
    "a green pear on the table",
    "red",
    "the sea is blue and wide",
    "blue sky",
    "a pear",
    "an apple a day",
]


def collection(name="made"):
    return Collection(
        name,
        ("red apple", "blue"),
        ("an apple", "the red fox", "the blue sea", "a blue sky", "green"),
        ({0: 4.0, 1: 1.0}, {2: 2.0, 3: 3.0}),
        (frozenset({4}), frozenset()),
    )


@pytest.fixture(scope="module")
def task():
    tokenizer = train_tokenizer(TEXTS, "characters", framed=True)
    return Retrieval.of(tokenizer, TEXTS * 40, collection(), collection("other"), length=16)


def bag_of_characters(batch):
    ids, mask = batch["input_ids"], batch["attention_mask"]
    counts = torch.zeros(len(ids), 64)
    return counts.scatter_add_(1, ids, mask.float())


@pytest.mark.parametrize("cutoff", [1, 3, 10, 50])
def test_ndcg_equals_scikit_learns(cutoff):
    from sklearn.metrics import ndcg_score

    draws = np.random.default_rng(0)
    for _ in range(20):
        gains = draws.integers(0, 5, 50).astype(float)
        gains[0] = 3.0
        scores = draws.permutation(50).astype(float)  # no ties: scikit-learn averages over them
        ranked = gains[np.argsort(-scores)]
        assert ndcg(ranked, gains, cutoff) == pytest.approx(ndcg_score([gains], [scores], k=cutoff), abs=1e-12)


def test_ndcg_by_hand():
    # gains 0, 3, 1 in rank order; best order 3, 2, 1
    expected = (3 / math.log2(3) + 1 / math.log2(4)) / (3 + 2 / math.log2(3) + 1 / math.log2(4))
    assert ndcg([0, 3, 1], [3, 2, 1]) == pytest.approx(expected, abs=1e-12)


def test_ndcg_needs_a_relevant_document():
    with pytest.raises(UsageError, match="without a relevant"):
        ndcg([0, 0], [0])


def test_rank_is_stable_and_leaves_out_the_excluded():
    assert rank(torch.tensor([0.5, 0.9, 0.5, 0.9]), frozenset({1}), 10) == [3, 0, 2]
    assert rank(torch.tensor([0.5, 0.9, 0.5, 0.9]), frozenset(), 2) == [1, 3]


def test_evaluate_equals_a_naive_recomputation(task):
    found = task.evaluate(bag_of_characters, "validation", batch_size=3)
    made = collection()

    def embed(text):
        ids = torch.tensor([task.tokenizer(text, truncation=True, max_length=16)["input_ids"]])
        return bag_of_characters({"input_ids": ids, "attention_mask": torch.ones_like(ids)})[0].double()

    values, reciprocal = [], []
    for query, gains, excluded in zip(made.queries, made.gains, made.excluded):
        q = embed(query)
        cosine = {}
        for at, text in enumerate(made.documents):
            if at not in excluded:
                d = embed(text)
                cosine[at] = float(q @ d / (q.norm() * d.norm()))
        order = sorted(cosine, key=lambda at: (-cosine[at], at))
        gain = sum(gains.get(at, 0) / math.log2(place + 2) for place, at in enumerate(order))
        best = sum(g / math.log2(place + 2) for place, g in enumerate(sorted(gains.values(), reverse=True)))
        values.append(gain / best)
        reciprocal.append(1 / (1 + next(place for place, at in enumerate(order) if at in gains)))
    assert list(found) == ["ndcg@10", "mrr@10", "recall@100"]
    assert found["ndcg@10"] == pytest.approx(np.mean(values), abs=1e-9)
    assert found["mrr@10"] == pytest.approx(np.mean(reciprocal), abs=1e-9)
    assert found["recall@100"] == 1.0
    assert task.metric == next(iter(found))


def test_evaluate_does_not_depend_on_the_batch_size(task):
    assert task.evaluate(bag_of_characters, batch_size=1) == task.evaluate(bag_of_characters, batch_size=100)


def test_a_limit_uses_fewer_queries_and_all_documents(task):
    one = task.evaluate(bag_of_characters, limit=1)
    both = task.evaluate(bag_of_characters)
    assert one != both and one["recall@100"] == 1.0


def test_a_perfect_and_the_worst_encoder(task):
    """One-hot per document, queries mapped to their best: 1. The opposite: the sign turns every ranking around."""
    wanted = {0: {0: 4.0, 1: 1.0}, 1: {2: 2.0, 3: 3.0}}

    def encoder(sign):
        def forward(batch):
            rows = torch.zeros(len(batch["index"]), 5)
            for row, at in zip(rows, batch["index"].tolist()):
                if at >= 2:
                    row[at - 2] = 1.0
                for document, gain in wanted.get(at, {}).items():
                    row[document] = sign * gain
            return rows

        return forward

    assert task.evaluate(encoder(1))["ndcg@10"] == pytest.approx(1.0)
    assert task.evaluate(encoder(-1))["ndcg@10"] < 0.75


def test_batches_are_reproducible_and_skip(task):
    all_of_it = list(task.batches("train", 8, seed=3, epoch=1))
    again = list(task.batches("train", 8, seed=3, epoch=1, skip=5))
    for one, two in zip(all_of_it[5:], again):
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert sorted(torch.cat([b["index"] for b in all_of_it]).tolist()) == list(range(task.size("train")))
    other = list(task.batches("train", 8, seed=4, epoch=1))
    assert not torch.equal(all_of_it[0]["index"], other[0]["index"])


def test_shuffled_batches_group_similar_lengths(task):
    lengths = task.lengths("train")

    def padding(seed):
        batches = list(task.batches("train", 10, seed=seed))
        return sum((b["attention_mask"] == 0).sum().item() for b in batches)

    spread = [lengths[b["index"]].float().std().item() for b in task.batches("train", 10, seed=0)]
    assert padding(None) <= padding(0) < sum(16 * 10 - lengths[i : i + 10].sum().item() for i in range(0, 280, 10))
    assert torch.equal(lengths, lengths.sort().values)
    assert np.mean(spread) < lengths.float().std().item() / 3


def test_padding_follows_the_text_and_is_masked(task):
    batch = next(task.batches("validation", 7))
    lengths = task.lengths("validation")
    assert torch.equal(batch["attention_mask"].sum(1), lengths)
    assert batch["input_ids"].shape[1] % 8 == 0 or batch["input_ids"].shape[1] == task.length
    assert (batch["input_ids"][batch["attention_mask"] == 0] == task.padding).all()


def test_example_is_full_length_without_padding(task):
    batch = task.example(3)
    assert batch["input_ids"].shape == (3, 16) and batch["attention_mask"].all()
    special = task.tokenizer.cls_token_id, task.tokenizer.sep_token_id
    assert (batch["input_ids"][:, 0] == special[0]).all() and (batch["input_ids"][:, -1] == special[1]).all()
    assert not torch.isin(batch["input_ids"][:, 1:-1], torch.tensor(special)).any()


def test_mistakes_are_named(task):
    with pytest.raises(DataError, match="no queries"):
        task.evaluate(bag_of_characters, "train")
    with pytest.raises(UsageError, match="no labels"):
        task.loss(torch.zeros(2, 4), {})
    with pytest.raises(UsageError, match="one embedding"):
        task.evaluate(lambda batch: torch.zeros(len(batch["input_ids"]), 3, 2))
    with pytest.raises(UsageError, match="other than the test collection"):
        Retrieval("cranfield", tokenizer="nowhere", texts=["cranfield"])
    with pytest.raises(DataError, match="no texts"):
        Retrieval.of(task.tokenizer, [], collection(), collection())


def test_digest_depends_on_gains(task):
    other = collection()
    changed = Collection(other.name, other.queries, other.documents, ({0: 4.0, 1: 2.0}, other.gains[1]), other.excluded)
    same = Retrieval.of(task.tokenizer, TEXTS * 40, collection(), collection("other"), length=16)
    different = Retrieval.of(task.tokenizer, TEXTS * 40, changed, collection("other"), length=16)
    assert task.digest() == same.digest() != different.digest()


def augmented(task, shares):
    return Retrieval.of(task.tokenizer, TEXTS * 40, collection(), collection(), length=16, replace_words=shares)


def test_replaced_words_are_a_function_of_seed_epoch_and_position(task):
    made = augmented(task, [0, 0.5])
    assert made.augmentation == "replace words [0.0, 0.5]" and task.augmentation == "none"
    views = list(made.batches("train", 8, seed=3, epoch=1, augment=True))
    again = list(made.batches("train", 8, seed=3, epoch=1, augment=True, skip=5))
    for one, two in zip(views[5:], again):
        assert one["epoch"] == two["epoch"] == 1
        assert all(torch.equal(one[key], two[key]) for key in ("input_ids", "attention_mask", "index"))
    plain = list(made.batches("train", 8, seed=3, epoch=1))
    later = {int(i): row for b in made.batches("train", 8, seed=3, epoch=2, augment=True)
             for i, row in zip(b["index"], b["input_ids"])}  # fmt: skip
    untouched = changed = differs = 0
    for view, batch in zip(views, plain):
        assert torch.equal(view["index"], batch["index"]) and torch.equal(
            view["attention_mask"], batch["attention_mask"]
        )
        special = batch["input_ids"] < 5
        assert torch.equal(view["input_ids"][special], batch["input_ids"][special])
        assert not (view["input_ids"][~special] < 5).any()
        same = (view["input_ids"] == batch["input_ids"]).all(1)
        untouched, changed = untouched + int(same.sum()), changed + int((~same).sum())
        for i, row in zip(view["index"].tolist(), view["input_ids"]):
            width = min(len(row), len(later[i]))
            differs += not torch.equal(row[:width], later[i][:width])
    assert 0.4 < untouched / (untouched + changed) < 0.7 and differs > 50
    assert "epoch" not in plain[0]


def test_an_epoch_replaces_other_words_than_the_one_before(task):
    """All passages are one and the same, so that their order does not matter: what differs is the draw alone."""
    made = Retrieval.of(task.tokenizer, TEXTS[:1] * 16, collection(), collection(), length=16, replace_words=[0.5])
    first, second = (next(made.batches("train", 8, seed=3, epoch=epoch, augment=True)) for epoch in (0, 1))
    assert first["input_ids"].shape == second["input_ids"].shape
    assert not torch.equal(first["input_ids"], second["input_ids"])


def test_a_cached_teacher_answers_each_epochs_views(task, tmp_path):
    from limbeck.teachers import FrozenTeacher, build_cache

    class Bag(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(64, 4)

        def forward(self, input_ids, attention_mask):
            return (self.table(input_ids) * attention_mask[..., None]).sum(1)

    torch.manual_seed(0)
    teacher, made = FrozenTeacher(Bag()), augmented(task, [0.3, 0.6])
    cached = build_cache(
        teacher, made, tmp_path, passes=2, seed=3, batch_size=8, dtype="float32", progress=False, limit=100
    )
    for epoch in range(2):
        for batch in made.batches("train", 8, seed=3, epoch=epoch, augment=True, limit=100):
            expected = teacher.signals(batch, frozenset({"logits"})).logits
            assert torch.allclose(cached.signals(batch, frozenset({"logits"})).logits, expected, atol=1e-6)


def test_shares_of_replaced_words_are_checked(task):
    with pytest.raises(UsageError, match="replace_words"):
        augmented(task, [2])
