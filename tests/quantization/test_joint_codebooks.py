"""Codebooks shared by runs of neurons and learned with their mapping, against loops; the order of neurons."""

import copy

import pytest
import rounding_examples
import torch

from limbeck.errors import UsageError
from limbeck.models import gpt, resnet
from limbeck.plan import apply
from limbeck.quantization import (
    CodebookGrid,
    IntegerGrid,
    JointCodebooks,
    OrderNeurons,
    PerChannel,
    PerRows,
    PerTensor,
    Quantize,
    Quantizer,
)
from limbeck.quantization.granularity import from_rows, parameter_shape, rows, spread
from limbeck.quantization.hessian import output_error
from limbeck.quantization.joint_codebooks import first_logits, mixture
from limbeck.signals import call, first_tensor

GRID = CodebookGrid(2)


def layer(count=12, columns=24, seed=0):
    weight, hessian = rounding_examples.layer(count, columns, seed)
    weight = weight * torch.linspace(0.5, 3.0, count)[:, None]
    return weight, ((hessian + hessian.T) / 2)[None]


def test_runs_of_rows_share_and_come_back():
    x = torch.arange(35.0).reshape(7, 5)
    side = rows(x, PerRows(3))
    assert side.shape == (3, 15) and torch.equal(side[0], x[:3].flatten()) and torch.equal(side[2], x[6].repeat(3))
    assert torch.isnan(rows(x, PerRows(3), fill=float("nan"))[2, 5:]).all()
    assert torch.equal(from_rows(side, x.shape, PerRows(3)), x)
    assert parameter_shape(x.shape, PerRows(3)) == (3,)
    wide = spread(torch.tensor([1.0, 2.0, 3.0]), x.shape, PerRows(3))
    assert wide.flatten().tolist() == [1, 1, 1, 2, 2, 2, 3]
    weight = layer()[0]
    together = Quantizer(GRID, PerRows(4), "kmeans")
    alone = Quantizer(GRID, PerTensor(), "kmeans")
    expected = torch.cat([alone.decode(alone.encode(part)) for part in weight.split(4)])
    assert torch.equal(together.decode(together.encode(weight)), expected)
    with pytest.raises(UsageError, match="run of rows"):
        PerRows(1)
    assert Quantize(weights="16 rows").specification.granularity == PerRows(16)
    with pytest.raises(UsageError, match="rows"):
        Quantize(weights="rows")


def test_shares_begin_where_they_mix_to_the_weight():
    book = torch.tensor([[-1.0, 0.0, 0.5, 2.0], [-2.0, -1.0, 1.0, 3.0]])
    x = torch.tensor([[-0.3, 0.5, 1.1, 9.0], [-1.5, 0.0, 2.9, -7.0]])
    found = mixture(first_logits(x, book, 1e-6), book, True)
    torch.testing.assert_close(found, x.clamp(book[:, :1], book[:, -1:]), rtol=1e-3, atol=1e-3)
    assert (first_logits(x, book).softmax(-1) > 0.005).all()


def test_both_gradients_follow_their_formulas():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, generator=generator)
    book = torch.tensor([[-1.0, 0.0, 0.5, 2.0], [-2.0, -1.0, 1.0, 3.0]])
    g = torch.randn(2, 3, generator=generator)
    results = {}
    for proximal in (False, True):
        a, c = logits.clone().requires_grad_(True), book.clone().requires_grad_(True)
        (mixture(a, c, proximal) * g).sum().backward()
        results[proximal] = a.grad, c.grad
    share = logits.softmax(-1)
    for at in range(2):
        delta = float((book[at].max() - book[at].min()) / 3)
        for j in range(3):
            p, likeliest = share[at, j].tolist(), float(book[at, int(share[at, j].argmax())])
            plain = [c - likeliest for c in book[at].tolist()]
            near = [0.0 if u == 0 else (1 if u > 0 else -1) * delta / (1 + abs(u) / delta) for u in plain]
            for proximal, u in ((False, plain), (True, near)):
                mean = sum(a * b for a, b in zip(p, u))
                for k in range(4):
                    expected = float(g[at, j]) * p[k] * (u[k] - mean)
                    assert float(results[proximal][0][at, j, k]) == pytest.approx(expected, abs=1e-5)
    for proximal in (False, True):
        expected = (g.unsqueeze(-1) * share).sum(1)
        torch.testing.assert_close(results[proximal][1], expected)


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerRows(5)])
@pytest.mark.parametrize("proximal", [True, False])
def test_learning_pays_and_is_never_worse(granularity, proximal):
    weight, hessian = layer()
    q = Quantizer(GRID, granularity, "kmeans", "bfloat16")

    def error(packed):
        q.check(packed)
        return float(output_error(q.decode(packed) - weight, hessian).sum())

    start = error(q.encode(weight))
    found = JointCodebooks(iterations=100, proximal=proximal).layer(weight, hessian, q)
    assert error(found) < 0.95 * start
    assert error(JointCodebooks(iterations=1, mapping_rate=50.0).layer(weight, hessian, q)) <= start
    fixed = JointCodebooks(iterations=50, book_rate=0.0).layer(weight, hessian, q)
    assert torch.equal(fixed.codebook.sort(-2).values, q.encode(weight).codebook.sort(-2).values)


def test_bad_settings_are_refused():
    for settings in ({"temperature": 0.0}, {"book_rate": -1.0}, {"iterations": 0}, {"mapping_rate": 0.0}):
        with pytest.raises(UsageError):
            JointCodebooks(**settings)
    weight, hessian = layer()
    for grid, method in ((IntegerGrid(4), "minmax"), (CodebookGrid(2, 4), "kmeans")):
        with pytest.raises(UsageError, match="codebooks of numbers"):
            JointCodebooks().layer(weight, hessian, Quantizer(grid, PerTensor(), method))


class Task:
    def __init__(self, batch):
        self.batch = batch

    def example(self, count):
        return {name: value[:count] for name, value in self.batch.items()}

    def batches(self, split, batch_size, *, limit):
        yield self.batch


def images():
    return {"pixel_values": torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))}


def tokens():
    return {"input_ids": torch.randint(0, 30, (4, 8), generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize(
    ("make", "batch"),
    [(lambda: resnet(8, channels=1, width=4), images), (lambda: gpt(30, 8, depth=2, width=16, heads=2), tokens)],
    ids=["resnet", "gpt"],
)
def test_another_order_of_neurons_computes_the_same_and_sizes_rise(make, batch):
    torch.manual_seed(0)
    model, task = make().eval(), Task(batch())
    before = first_tensor(call(model, task.batch))
    plan = OrderNeurons().plan(model, task)
    again = apply(copy.deepcopy(model), plan).eval()
    torch.testing.assert_close(first_tensor(call(again, task.batch)), before, rtol=1e-4, atol=1e-5)
    name = next(g["name"] for g in plan.decisions["groups"] if g["kind"] != "heads")
    changed = [path for path in plan.decisions["kept"] if not torch.equal(*weights(model, again, path))]
    assert changed and name
    single = [g for g in plan.decisions["groups"] if g["kind"] != "heads"]
    for group in single:
        makers = [
            p for p in group["paths"] if "out" in plan.decisions["kept"][p] and again.get_submodule(p).weight.dim() > 1
        ]
        if len(makers) == 1:
            sizes = again.get_submodule(makers[0]).weight.detach().flatten(1).square().mean(1)
            assert (sizes.diff() >= -1e-7).all()


def weights(one, other, path):
    return one.get_submodule(path).weight.detach(), other.get_submodule(path).weight.detach()


def test_orders_and_codebooks_in_one_recipe():
    torch.manual_seed(0)
    model, task = gpt(30, 8, depth=1, width=16, heads=2).eval(), Task(tokens())
    model = apply(model, OrderNeurons("neurons").plan(model, task))
    quantize = Quantize(bits=2, weights="8 rows", grid="kmeans", activations=None, examples=4,
                        rounding=JointCodebooks(iterations=5), only="blocks.*")  # fmt: skip
    done = apply(model, quantize.plan(model, task))
    assert torch.isfinite(first_tensor(call(done, task.batch))).all()
    for bad in ("rows", ()):
        with pytest.raises(UsageError, match="kinds"):
            OrderNeurons(bad)
    with pytest.raises(UsageError, match="task"):
        OrderNeurons().plan(model)
