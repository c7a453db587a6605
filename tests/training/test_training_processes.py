"""Several processes take the same steps as one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent


def launch(processes, folder, stop=-1):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    arguments = [
        str(HERE / "processes_runner.py"),
        str(folder / f"{processes}"),
        str(folder / f"run{processes}"),
        str(stop),
    ]
    done = subprocess.run(
        [sys.executable, *launcher, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [load_file(folder / f"{processes}.{index}") for index in range(processes)]


@pytest.mark.slow
@pytest.mark.parametrize("stop", [-1, 4], ids=["uninterrupted", "continued"])
def test_two_processes_equal_one(tmp_path, stop):
    (one,) = launch(1, tmp_path)
    first, second = launch(2, tmp_path, stop)
    for name, value in one.items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(value, first[name], atol=1e-6), name
