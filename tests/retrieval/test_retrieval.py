"""Product quantization, the index and its distillation against naive computations and faiss-free references."""

import pytest
import torch

from limbeck.errors import UsageError
from limbeck.objectives import CrossEntropy, SoftTargets
from limbeck.retrieval import DistilIndex, QuantizedIndex, fit_codebooks, fit_rotation, straight_through
from limbeck.retrieval import product_quantization as product
from limbeck.tasks import CustomTask
from limbeck.training import Trainer, TrainingConfig


def correlated(count=300, width=8, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=draw) @ torch.randn(width, width, generator=draw)


def index_of(documents, **changes):
    settings = {"lists": 4, "parts": 4, "codes": 8, "iterations": 10, "generator": torch.Generator().manual_seed(0)}
    return QuantizedIndex.fit(documents, **{**settings, **changes})


def test_codes_are_the_nearest_by_brute_force():
    x, books = torch.randn(20, 6), torch.randn(3, 5, 2)
    codes = product.encode(x, books)
    for row in range(20):
        for part in range(3):
            piece = x[row, 2 * part : 2 * part + 2]
            assert codes[row, part] == (books[part] - piece).norm(dim=-1).argmin()
    torch.testing.assert_close(product.decode(codes, books)[:, 2:4], books[1][codes[:, 1]])


def test_enough_codes_lose_nothing():
    x = torch.randn(12, 6)
    books = fit_codebooks(x, 3, 12, iterations=50)
    torch.testing.assert_close(product.decode(product.encode(x, books), books), x)


def test_the_rotation_is_orthogonal_and_lowers_the_distortion():
    x = correlated()
    rotation, books = fit_rotation(x, 4, 8, torch.Generator().manual_seed(0), rounds=30)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(8), atol=1e-4, rtol=0)

    def distortion(y, codebooks):
        return float((y - product.decode(product.encode(y, codebooks), codebooks)).square().sum(-1).mean())

    plain = distortion(x, fit_codebooks(x, 4, 8, torch.Generator().manual_seed(0), 50))
    assert distortion(x @ rotation, books) < 0.97 * plain


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_straight_through_is_the_hard_choice_forward_and_the_soft_one_backward(temperature):
    x, books = torch.randn(5, 4, dtype=torch.float64), torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 4, dtype=torch.float64)
    found = straight_through(x, books, temperature)
    torch.testing.assert_close(found, product.decode(product.encode(x, books.detach()), books.detach()))
    (found * weight).sum().backward()
    # written out: hard choice times the codes' gradient, plus fixed codes times the gradient of the soft choice
    other = books.detach().clone().requires_grad_()
    total = 0
    for row in range(5):
        for part in range(2):
            piece, w = x[row, 2 * part : 2 * part + 2], weight[row, 2 * part : 2 * part + 2]
            distance = ((other[part] - piece) ** 2).sum(-1)
            soft = torch.exp(-distance / temperature) / torch.exp(-distance / temperature).sum()
            total = total + w @ other[part][distance.argmin()] + soft @ (other[part].detach() @ w)
    total.backward()
    torch.testing.assert_close(books.grad, other.grad)


def test_search_is_the_ranking_of_the_reconstructions():
    documents, queries = correlated(), correlated(seed=1)[:7]
    index = index_of(documents, rounds=3)
    _, quantized = index.reconstruct(documents, torch.arange(len(documents)))
    scores = queries @ index.rotation @ quantized.detach().T
    assert torch.equal(index.search(queries, 5), scores.topk(5).indices)
    nearest_list = (queries @ index.rotation @ index.centroids.detach().T).argmax(-1)
    scores = scores.masked_fill(index.lists[None, :] != nearest_list[:, None], -torch.inf)
    assert torch.equal(index.search(queries, 5, probe=1), scores.topk(5).indices)
    everything = index.search(queries, 300, probe=1)
    assert bool((everything[:, -1] == -1).all())
    assert index.bytes_per_document == (2 + 4 * 3) / 8


def test_with_a_code_for_every_document_the_ranking_is_exact():
    documents = correlated(40)
    index = index_of(documents, lists=1, codes=40, iterations=60)
    assert torch.equal(
        index.search(documents[:5], 10).sort().values, (documents[:5] @ documents.T).topk(10).indices.sort().values
    )


def procedure(documents, objective=None, **changes):
    objective = objective or SoftTargets(1.0)
    return DistilIndex(index_of(documents), documents, objective, **{"top": 50, "hard": 6, "random": 4, **changes})


def test_the_losses_are_the_formula():
    documents = correlated()
    one = procedure(documents, temperature=2.0)
    batch = {"queries": documents[:3] + 0.1, "own": torch.arange(3)}
    torch.manual_seed(1)
    code, by_list = one.losses(batch)
    torch.manual_seed(1)
    rows, place = one.candidates(batch["queries"], batch["own"])
    assert torch.equal(rows[place], batch["own"])
    assert len(rows.unique()) == len(rows) >= 9
    index = one.index
    teacher = torch.softmax(batch["queries"] @ documents[rows].T / 2, -1)
    centres = index.centroids[index.lists[rows].long()]
    whole = centres + torch.cat([b[index.codes[rows, p].long()] for p, b in enumerate(index.codebooks)], 1)
    for found, vectors in ((code, whole), (by_list, centres)):
        listwise = -(teacher * torch.log_softmax(batch["queries"] @ index.rotation @ vectors.T / 2, -1)).sum(-1).mean()
        entropy = -(teacher * teacher.log()).sum(-1).mean()
        torch.testing.assert_close(found.value, listwise - entropy, rtol=1e-4, atol=1e-5)


def test_a_temperature_is_the_length_of_the_vectors():
    documents, scale = correlated(), 3.0
    small = procedure(documents, temperature=1 / scale**2)
    long = procedure(documents)
    with torch.no_grad():
        for value in (long.index.centroids, long.index.codebooks):
            value.mul_(scale)
    long.documents = documents * scale
    for one, factor in ((small, 1.0), (long, scale)):
        torch.manual_seed(1)
        code, by_list = one.losses({"queries": (documents[:3] + 0.1) * factor, "own": torch.arange(3)})
        (code.value + by_list.value).backward()
    torch.testing.assert_close(small.index.codebooks.grad, long.index.codebooks.grad * scale, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(small.index.centroids.grad, long.index.centroids.grad * scale, rtol=1e-4, atol=1e-5)


def test_both_losses_weigh_the_same_at_the_start():
    documents = correlated()
    one = procedure(documents)
    torch.manual_seed(0)
    one.prepare({"queries": documents[:8], "own": torch.arange(8)}, torch.device("cpu"))
    torch.manual_seed(0)
    code, by_list = one.losses({"queries": documents[:8], "own": torch.arange(8)})
    torch.testing.assert_close(one.list_weight * by_list.value, code.value)
    one.list_weight = 7.0
    torch.manual_seed(0)
    stepped = one.step({"queries": documents[:8], "own": torch.arange(8)}, None)
    torch.testing.assert_close(stepped["centroids"].value, code.value + 7 * by_list.value)
    torch.testing.assert_close(stepped["main"].value, code.value)


@pytest.mark.parametrize("objective", [SoftTargets(1.0), CrossEntropy()])
def test_training_moves_the_index_and_keeps_documents_rotation_and_lists(objective):
    documents = correlated()
    one = procedure(documents, objective, temperature=5.0)
    kept = [x.clone() for x in (one.index.rotation, one.index.lists, documents)]
    before = one.index.codebooks.detach().clone(), one.index.centroids.detach().clone()
    rows = {"queries": documents[:64], "own": torch.arange(64), "labels": torch.arange(64)}
    task = CustomTask({"train": rows, "test": rows}, inputs=("queries", "own"), version="1")
    config = TrainingConfig(steps=30, batch_size=16, learning_rate=3e-3, schedule="constant", log_every=1)
    history = Trainer(config, progress=False).run(one, task)
    losses = [row["loss"] for row in history.steps]
    assert sum(losses[-8:]) < sum(losses[:8])
    assert all(torch.equal(a, b) for a, b in zip(kept, (one.index.rotation, one.index.lists, documents)))
    assert not torch.equal(before[0], one.index.codebooks) and not torch.equal(before[1], one.index.centroids)
    residual = documents @ one.index.rotation - one.index.centroids[one.index.lists.long()]
    assert torch.equal(one.index.codes.long(), product.encode(residual, one.index.codebooks))


def test_nonsense_is_refused():
    documents = correlated(50)
    with pytest.raises(UsageError, match="parts"):
        index_of(documents, parts=3)
    with pytest.raises(UsageError, match="codes"):
        index_of(documents, codes=1)
    with pytest.raises(UsageError, match="count=51"):
        index_of(documents).search(documents[:1], 51)
    with pytest.raises(UsageError, match="hard=60"):
        procedure(documents, hard=60)
    with pytest.raises(UsageError, match="temperature"):
        procedure(documents, temperature=0.0)
