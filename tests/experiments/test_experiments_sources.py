"""What a paper's numbers are decided by: the files it uses, at any distance, and nothing else."""

from __future__ import annotations

import importlib

from limbeck.experiments import sources as sources_module
from limbeck.experiments.sources import sources


def test_it_finds_what_is_used_and_leaves_out_the_rest():
    found = sources(importlib.import_module("limbeck.papers.nkd"))
    assert {
        "limbeck.papers.nkd",
        "limbeck.beds.images",
        "limbeck.objectives.logits.partitions",  # imported through the room's list of names
        "limbeck.objectives.divergences",  # two steps away
        "limbeck.training.trainer",
        "limbeck.experiments.run",
    } <= set(found)
    assert not {"limbeck.objectives", "limbeck.report.page", "limbeck.errors", "limbeck.experiments.table"} & set(found)
    assert not any(name.startswith("limbeck.papers.") and name != "limbeck.papers.nkd" for name in found)


def test_a_change_far_away_is_seen(tmp_path, monkeypatch):
    package = tmp_path / "farlab"
    package.mkdir()
    (package / "__init__.py").write_text("from farlab.near import f\n")
    (package / "near.py").write_text("def f():\n    from .far import g\n    return g()\n")
    (package / "far.py").write_text("def g():\n    return 1\n")
    (package / "other.py").write_text("x = 1\n")
    (package / "paper.py").write_text("from farlab import f\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("farlab.paper")
    before = sources(module)
    assert set(before) == {"farlab.paper", "farlab.near", "farlab.far"}
    (package / "far.py").write_text("def g():\n    return 2\n")
    after = sources(module)
    assert {name for name in before if before[name] != after[name]} == {"farlab.far"}


def test_an_extra_that_is_not_installed_is_passed_over():
    assert sources_module._load("limbeck.no_such_module") is None
