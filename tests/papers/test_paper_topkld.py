"""TopKLD's paper file: its arms run, spend alike, and are what the paper says."""

import dataclasses
from dataclasses import replace

import pytest
import torch
from arms import assert_alike, run_arms

from limbeck.beds.visual_tokens import VisualTokens, perplexity, sentence
from limbeck.papers import topkld as module
from limbeck.tasks import CustomTask


@dataclasses.dataclass(frozen=True)
class Tiny(VisualTokens):
    """Sentences of five random codes."""

    vocabulary: int = 40
    length: int = 5
    batch_size: int = 4
    blocks: int = 8

    @property
    def task(self):
        draw = torch.Generator().manual_seed(0)
        codes = torch.randint(0, 40, (16, 5), generator=draw)
        rows = sentence(codes, torch.zeros(16, dtype=torch.long), 40)
        settings = {"metric": perplexity, "metric_name": "perplexity", "better": "lower"}
        return CustomTask(
            {"train": rows, "validation": rows, "test": rows}, inputs=("input_ids",), version="1", **settings
        )


def test_every_arm_runs_and_spends_alike(tmp_path):
    results = run_arms(module.paper, tmp_path, steps=2, before=2, bed=Tiny())
    assert_alike(module.paper, results, "steps", "samples")
    losses = [found["loss"] for found, _ in results.values()]
    assert len(set(losses)) == len(losses)


def test_the_losses_are_those_named():
    assert module.objective("top_k", 7) == module.TopKTargets(k=7, head="forward", rest="reverse", weight=1.0)
    with pytest.raises(KeyError):
        module.objective("other", 7)
    assert replace(module.BED, blocks=1).length == 49
