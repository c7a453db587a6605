"""The recommender on data whose best configuration is known, and its parts against other computations."""

import random

import numpy
import pytest
import torch
from scipy import stats

from limbeck.errors import UsageError
from limbeck.search import Recommender, Trial, rank_correlation
from limbeck.search.recommend import ridge

LOSSES, DATASETS = (
    ("mse", "cosine", "mi"),
    {name: {"size": size, "classes": 2.0} for name, size in zip("abc", (1.0, 2.0, 4.0))},
)


def truth(configuration, size):
    """Small sets like "mi", large ones "mse"; a weight near 0.5 is best in none, more is better in all."""
    taste = {"mse": 0.4 * size, "cosine": 0.0, "mi": 1.0 - 0.3 * size}[configuration["loss"]]
    return taste + 0.3 * configuration["weight"]


def trials(count=40, noise=0.05):
    draw = random.Random(0)
    out = []
    for name, described in DATASETS.items():
        for _ in range(count):
            configuration = {"loss": draw.choice(LOSSES), "weight": draw.random()}
            score = 10 * described["size"] + 0.1 * (truth(configuration, described["size"]) + draw.gauss(0, noise))
            out.append(Trial(configuration, name, score))
    return out


CANDIDATES = [{"loss": loss, "weight": weight} for loss in LOSSES for weight in (0.1, 0.5, 0.9)]


@pytest.mark.parametrize("size", [0.5, 6.0])
def test_it_ranks_configurations_for_a_data_set_it_never_saw(size):
    found = Recommender(trials(), DATASETS)
    new = {"size": size, "classes": 2.0}
    expected = [truth(c, size) for c in CANDIDATES]
    assert rank_correlation(found.predict(CANDIDATES, new).tolist(), expected) > 0.9
    first = CANDIDATES[found.rank(CANDIDATES, new)[0]]
    assert first == {"loss": "mi" if size < 1 else "mse", "weight": 0.9}


def test_the_level_of_a_data_set_does_not_matter():
    rows = trials()
    moved = [Trial(t.configuration, t.dataset, 7 * t.score - 100 if t.dataset == "a" else t.score) for t in rows]
    new = {"size": 3.0, "classes": 2.0}
    one, two = (Recommender(found, DATASETS).predict(CANDIDATES, new) for found in (rows, moved))
    torch.testing.assert_close(one, two)


def test_ridge_is_the_minimum():
    generator = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(7, 3, generator=generator, dtype=torch.float64),
        torch.randn(7, generator=generator, dtype=torch.float64),
    )
    whole = numpy.concatenate([x.numpy(), numpy.sqrt(0.5) * numpy.eye(3)])
    expected = numpy.linalg.lstsq(whole, numpy.concatenate([y.numpy(), numpy.zeros(3)]), rcond=None)[0]
    torch.testing.assert_close(ridge(x, y, 0.5), torch.from_numpy(expected))


def test_rank_correlation_equals_scipy():
    draw = random.Random(1)
    for _ in range(20):
        x, y = ([draw.randrange(5) for _ in range(8)] for _ in range(2))
        assert rank_correlation(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) == 0.0


def test_refusals():
    rows = trials(3)
    with pytest.raises(UsageError, match="two or more"):
        Recommender([t for t in rows if t.dataset == "a"], DATASETS)
    with pytest.raises(UsageError, match="no descriptors"):
        Recommender(rows, {"a": DATASETS["a"]})
    with pytest.raises(UsageError, match="classes"):
        Recommender(rows, {**DATASETS, "a": {"size": 1.0}})
    with pytest.raises(UsageError, match="not in every trial"):
        Recommender([Trial({"loss": "mi"}, "a", 1.0), Trial({"weight": 1}, "b", 1.0)], DATASETS)
    with pytest.raises(UsageError, match="regularization"):
        Recommender(rows, DATASETS, 0.0)
    found = Recommender(trials(), DATASETS)
    for wrong, named in (
        ({"loss": "l1", "weight": 0.1}, "no trial had 'l1'"),
        ({"loss": "mi"}, "weight"),
        ({"loss": "mi", "weight": "x"}, "number"),
    ):
        with pytest.raises(UsageError, match=named):
            found.predict([wrong], DATASETS["a"])
    with pytest.raises(UsageError, match="one length"):
        rank_correlation([1, 2], [1])
