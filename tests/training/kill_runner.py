"""Trains in a forked process that is killed with SIGKILL at random moments, until one comes through; prints both digests.

python kill_runner.py FOLDER KILLS SEED
"""

import hashlib
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import accelerate  # noqa: F401 - imported once, not in every child
import torch
from training_examples import TinyTask, tiny_model

from limbeck.objectives import SoftTargets
from limbeck.teachers import AveragedTeacher
from limbeck.training import Distil, TaskLoss, Trainer, TrainingConfig

CONFIG = TrainingConfig(steps=40, batch_size=8, checkpoint_every=1, average=0.9, mixup=0.3, evaluate_every=2)


def train(folder: Path) -> str:
    task, model = TinyTask(), tiny_model()
    objective = SoftTargets() + TaskLoss(task)
    Trainer(CONFIG, folder, progress=False).run(Distil(model, AveragedTeacher(0.9), objective), task)
    state = hashlib.sha256()
    for name, value in model.state_dict().items():
        state.update(name.encode() + value.numpy().tobytes())
    return state.hexdigest()


def in_child(folder: Path, result: Path) -> int:
    child = os.fork()
    if child == 0:
        try:
            result.write_text(train(folder))
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return child


def main() -> None:
    folder, kills, draws = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    torch.set_num_threads(1)
    os.fsync = lambda handle: None  # a killed process loses nothing that is only in the system's cache
    started = time.perf_counter()
    child = in_child(folder / "whole", folder / "expected")
    assert os.waitpid(child, 0)[1] == 0
    length = time.perf_counter() - started
    killed = 0
    while True:
        child = in_child(folder / "killed", folder / "found")
        if killed < kills:
            time.sleep(draws.uniform(0, 2 * length / kills))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            killed += 1
        else:
            assert status == 0, status
            if killed == kills:
                break
            shutil.rmtree(folder / "killed")  # it came through too early: all over again, with shorter lives
            killed, length = 0, length / 2
    print(killed, (folder / "expected").read_text(), (folder / "found").read_text())


if __name__ == "__main__":
    main()
