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
