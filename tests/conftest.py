"""Every test draws the same random numbers, whatever ran before it."""

import random

import pytest


@pytest.fixture(autouse=True)
def _seeded():
    import numpy
    import torch

    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def tiny_text(tmp_path, monkeypatch):
    """The folder of a data set of running text: some thousand characters."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for split, count in (("train", 200), ("validation", 20), ("test", 20)):
        rows = {"text": ["to be or not to be that is the question"] * count}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "text" / f"{split}.parquet")
    return str(tmp_path / "text")
