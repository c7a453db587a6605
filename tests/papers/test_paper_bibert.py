"""BiBERT's paper file: its arms run, spend alike, and are what the paper says."""

import math

import pytest
import torch
from arms import assert_alike, run_arms

from limbeck.beds.text import TextBed
from limbeck.datasets.load import find_folder
from limbeck.models import binary_encoder
from limbeck.papers.bibert import map_bits, objective, paper, stored_bytes

TINY = TextBed("sst2", vocabulary=300, length=16, labelled=96, depth=2, width=16, heads=2, steps=2)


@pytest.mark.skipif(find_folder("sst2") is None, reason="data set sst2 (make data)")
def test_every_arm_runs_and_spends_alike(tmp_path):
    results = run_arms(paper, tmp_path, steps=2, bed=TINY)
    assert_alike(paper, results, "steps", "samples", "bytes")
    assert results["baseline"][0]["map_bits"] == 0 == results["softmax"][0]["map_bits"]
    assert 0 < results["method"][0]["map_bits"] <= 1


def test_the_loss_is_the_papers():
    terms = objective(2, 4, relations=True).terms
    weights = {(type(term).__name__, getattr(term, "loss", None)): weight for term, weight in terms}
    assert weights == {
        ("SoftTargets", None): 1.0,
        ("CrossEntropy", None): 0.5,
        ("Hint", "direction"): 1.0,
        ("TokenRelations", "direction"): 1.0,
    }
    assert sum(type(term).__name__ == "TokenRelations" for term, _ in terms) == 6
    assert sum(type(term).__name__ == "Hint" for term, _ in terms) == 3


def test_entropy_and_bytes_by_hand():
    torch.manual_seed(0)
    model = binary_encoder(10, 2, length=4, depth=1, width=8, heads=2, hidden=16).eval()
    batch = {"input_ids": torch.tensor([[1, 2, 3, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])}
    seen = []
    model.blocks[0].attention.weights.register_forward_hook(lambda *a: seen.append(a[2]))
    with torch.no_grad():
        model(**batch)
    shares = [float(seen[0][0, head, :3, :3].mean()) for head in range(2)]
    bits = [-sum(q * math.log2(q) for q in (p, 1 - p) if q) for p in shares]
    assert map_bits(model, batch) == pytest.approx(sum(bits) / 2, abs=1e-6)
    rows = {"tokens": (10, 8), "attention": (4 * 8, 8), "up": (16, 8), "down": (8, 16)}
    binary = sum(count * (width // 8 + 4) for count, width in rows.values())
    float_parameters = 4 * 8 + 4 * 8 + 16 + 8 + 6 * 8 + 8 * 2 + 2  # positions, biases, norms, head
    assert stored_bytes(model) == binary + 4 * float_parameters
