"""`limbeck compress` killed with SIGKILL at random moments continues with the same command and ends with the same weights."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPE = """
name: kill
seed: 5
task: {class: ImageClassification, dataset: digits}
teacher:
  model: {class: resnet, depth: 8, channels: 1}
  train: {steps: 40, batch_size: 32, optimizer: sgd, learning_rate: 0.1, checkpoint_every: 7}
student: {class: resnet, depth: 8, channels: 1, width: 8}
steps:
  - distill:
      objective: [{class: SoftTargets, temperature: 4}, {class: Hint, student: layer3, teacher: layer3, weight: 0.1}]
      train: {steps: 40, batch_size: 32, checkpoint_every: 7, average: 0.9}
      cache: {top_k: 5}
  - prune: {keep: 0.5}
  - quantization_aware:
      quantize: {bits: 8, activations: static, examples: 32}
      train: {steps: 12, batch_size: 32, checkpoint_every: 5}
measure: {rounds: 3, threads: 1, throughput_batch_size: 4}
"""


def start(folder: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LIMBECK_STORE": str(folder / "store")}
    command = [
        sys.executable,
        "-m",
        "limbeck",
        "compress",
        str(folder / "recipe.yaml"),
        "--out",
        str(folder / "run"),
        "--json",
    ]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(folder: Path) -> tuple[dict, float]:
    began = time.monotonic()
    process = start(folder)
    out, err = process.communicate(timeout=1500)
    assert process.returncode == 0, err
    return json.loads(out), time.monotonic() - began


def prepared(folder: Path) -> Path:
    folder.mkdir()
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def killed(folder: Path, seconds: float) -> bool:
    """Start the command and kill it after so many seconds; False when it was done before."""
    process = start(folder)
    try:
        process.communicate(timeout=seconds)
        assert process.returncode == 0
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return True


def check(tmp_path: Path, kills: int, seed: int) -> None:
    whole, seconds = finish(prepared(tmp_path / "whole"))
    draws, done, run = random.Random(seed), 0, 0
    while done < kills:
        folder = prepared(tmp_path / f"cut-{run}")
        run += 1
        while done < kills and killed(folder, draws.uniform(0.1, 0.6) * seconds):
            done += 1
        found, _ = finish(folder)
        assert found["weights"] == whole["weights"]
        names = [[stage["name"] for stage in report["report"]["stages"]] for report in (found, whole)]
        assert names[0] == names[1]
        quality = [
            [s["measurements"]["accuracy"]["value"] for s in report["report"]["stages"]] for report in (found, whole)
        ]
        assert quality[0] == quality[1]


def test_two_kills(tmp_path):
    check(tmp_path, kills=2, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_kills(tmp_path):
    check(tmp_path, kills=20, seed=1)
