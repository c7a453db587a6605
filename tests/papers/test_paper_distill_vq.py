"""The arms of Distill-VQ end to end on made-up vectors, and the composition is what the paper says."""

import math
from dataclasses import dataclass

import pytest
import torch

from limbeck.beds.retrieval import Embedded, sentences
from limbeck.experiments.run import Run
from limbeck.experiments.store import Store
from limbeck.papers import distill_vq


@dataclass(frozen=True)
class Tiny(Embedded):
    def vectors(self, run):
        draw = torch.Generator().manual_seed(0)
        documents = torch.nn.functional.normalize(torch.randn(250, 32, generator=draw), dim=-1)
        own = torch.arange(60)
        return {
            "documents": documents,
            "train": documents[:60],
            "train.own": own,
            "validation": documents[60:90],
            "test": documents[90:],
        }

    def digest(self):
        return "tiny"


@pytest.mark.parametrize("name", distill_vq.paper.arms)
def test_every_arm_runs_in_equal_bytes(name, monkeypatch, tmp_path):
    monkeypatch.setattr(distill_vq, "BED", Tiny())
    arm = distill_vq.paper.arms[name]
    one = Run(0, "validation", Store(tmp_path))
    changes = {"steps": 2} if arm.run is distill_vq.learned else {"iterations": 2}
    found = arm.run(one, **arm.candidates()[0] | changes)
    assert all(math.isfinite(value) for value in found.values())
    assert 0 <= found["recall@10"] <= found["recall@10_all_lists"] + 0.2 <= 1.2
    assert one.costs["bytes"] == 250 * 8.5
    assert one.costs.get("steps", 0) == changes.get("steps", 0)


def test_the_exact_ranking_has_recall_one(tmp_path):
    one, bed = Run(0, "test", Store(tmp_path)), Tiny()
    vectors = bed.vectors(one)
    exact = (vectors["test"] @ vectors["documents"].T).topk(10).indices
    assert bed.recall(one, exact) == 1
    exact[:, :5] = -1
    assert bed.recall(one, exact) == 0.5


def test_queries_are_sentences_of_the_documents():
    text = "the title of a document . short one . a sentence that has more than five words . another one with enough words here ."
    assert sentences(text, 2) == ["the title of a document", "a sentence that has more than five words"]
