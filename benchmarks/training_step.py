"""What the Trainer costs over a loop written by hand in plain torch, and an offline over an online teacher.

    python benchmarks/training_step.py                  step time, peak memory, offline against online teacher
    python benchmarks/training_step.py --only step --precision bf16 --channels-last --json out.json

Step time: both loops train the same model on the same batches in one process and take turns, a block of steps each, so
that whatever else the machine does hits both; the figure is the median over pairs of neighbouring blocks of the ratio of
their times, with quartiles. The Trainer's blocks contain all that its loop does: data, seeding, the check for NaN, the
gradient norm, the history. Peak memory: the same two loops, each in a process of its own with the same imports.
Teacher: the same student and batches, epochs with the teacher's forward pass and epochs with its cached answers in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import accelerate
import torch
from torch.nn import functional

from limbeck.datasets.images import shift_and_flip
from limbeck.models import encoder, resnet
from limbeck.objectives import SoftTargets
from limbeck.tasks.base import Task
from limbeck.teachers import FrozenTeacher, build_cache
from limbeck.training import Distil, Supervised, Trainer, TrainingConfig


class Synthetic(Task):
    """Random examples in memory; images with random crops and flips, as CIFAR is trained on, or token sequences."""

    name, dataset, metric = "synthetic", "random numbers", "accuracy"

    def __init__(self, kind: str, examples: int, classes: int = 10):
        draws = torch.Generator().manual_seed(0)
        self.kind, self.classes = kind, tuple(str(i) for i in range(classes))
        self.augmentation = "crop 4, flip true" if kind == "images" else "none"
        self.labels = torch.randint(classes, (examples,), generator=draws)
        if kind == "images":
            self.data = torch.randint(256, (examples, 3, 32, 32), generator=draws, dtype=torch.uint8)
        else:
            self.data = torch.randint(1000, (examples, 64), generator=draws)

    def size(self, split):
        return len(self.labels)

    def _examples(self, split, index, augment):
        data = self.data[index]
        if self.kind == "tokens":
            return {"input_ids": data, "attention_mask": torch.ones_like(data), "labels": self.labels[index]}
        if augment is not None:
            data = shift_and_flip(data, 4, True, augment)
        return {"pixel_values": data.float().div_(127.5).sub_(1), "labels": self.labels[index]}

    def _content(self):
        yield from (self.data, self.labels)

    def evaluate(self, forward, split="validation", batch_size=256, limit=None):
        return {"accuracy": 0.0}


CASES = {
    "resnet20": ("images", lambda: resnet(20), {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 5e-4}),
    "encoder": ("tokens", lambda: encoder(1000, classes=10, depth=4, width=128), {"optimizer": "adamw"}),
}


class ByHand:
    """The loop that one would write without Limbeck; `advance` takes some steps and then rests."""

    def __init__(self, model, task, config, device):
        self.model, self.config, self.device = model.to(device).train(), config, device
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)
        if config.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(
                model.parameters(), config.learning_rate, momentum=0.9, nesterov=True, weight_decay=config.weight_decay
            )
        else:
            self.optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=0.0)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, config.steps)
        self.batches = self.endless(task)
        self.losses = []

    def endless(self, task):
        epoch = 0
        while True:
            yield from task.batches("train", self.config.batch_size, seed=0, epoch=epoch, augment=True)
            epoch += 1

    def advance(self, steps):
        for _, batch in zip(range(steps), self.batches, strict=False):
            labels = batch["labels"].to(self.device)
            if "pixel_values" in batch:
                inputs = (batch["pixel_values"].to(self.device),)
                if self.config.channels_last:
                    inputs = (inputs[0].to(memory_format=torch.channels_last),)
            else:
                inputs = (batch["input_ids"].to(self.device), batch["attention_mask"].to(self.device))
            self.optimizer.zero_grad()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                loss = functional.cross_entropy(self.model(*inputs).float(), labels)
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            if self.device.type == "cpu":
                self.losses.append(loss.item())
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Alternating(Supervised):
    """Training with the Trainer that, after every block of steps, hands over to the other loop for as many."""

    def __init__(self, model, task, other, block):
        super().__init__(model, task)
        self.other, self.block, self.ours, self.theirs = other, block, [], []  # (wall, processor) seconds of blocks
        self.since = None

    def after_step(self, state):
        if (state.step + 1) % self.block:
            return
        if state.device.type == "cuda":
            torch.cuda.synchronize()
        before = clocks()
        self.other.advance(self.block)
        after = clocks()
        if self.since is not None:  # the first block of both is warm-up
            self.ours.append([b - a for a, b in zip(self.since, before, strict=True)])
            self.theirs.append([b - a for a, b in zip(before, after, strict=True)])
        self.since = clocks()


def clocks():
    """Wall time, and processor time of this process: on a busy machine the latter is the steadier."""
    return time.perf_counter(), time.process_time()


def settings(case, options, steps):
    return TrainingConfig(
        steps=steps,
        batch_size=options.batch_size,
        precision=options.precision,
        channels_last=options.channels_last and case != "encoder",
        checkpoint_every=steps,
        **CASES[case][2],
    )


def quartiles(values):
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high, "runs": len(values)}


def step_time(case, options):
    kind, make, _ = CASES[case]
    task = Synthetic(kind, options.batch_size * 16)
    config = settings(case, options, options.block * (options.pairs + 1))
    device = accelerate.Accelerator().device
    torch.manual_seed(0)
    ours = make()
    torch.manual_seed(0)
    procedure = Alternating(ours, task, ByHand(make(), task, config, device), options.block)
    Trainer(config, progress=False).run(procedure, task)
    per_step = [wall / options.block for wall, _ in procedure.ours]
    return {
        "ratio": quartiles(ratios(procedure.ours, procedure.theirs, 0)),
        "processor_ratio": quartiles(ratios(procedure.ours, procedure.theirs, 1)),
        "trainer_seconds": quartiles(per_step),
    }


def ratios(ours, theirs, clock):
    """Each block of ours against the mean of the blocks of theirs before and after it, so that drift cancels."""
    ours, theirs = ([block[clock] for block in blocks] for blocks in (ours, theirs))
    return [2 * own / (a + b) for own, a, b in zip(ours[1:], theirs, theirs[1:], strict=False)]


def peak_memory(case, options):
    found = {}
    for loop in ("trainer", "hand"):
        command = [sys.executable, __file__, "--child", case, loop, "--batch-size", str(options.batch_size)]
        command += ["--precision", options.precision] + ["--channels-last"] * options.channels_last
        done = subprocess.run(
            [*command, "--threads", str(torch.get_num_threads())], capture_output=True, text=True, check=True
        )
        found[f"{loop}_bytes"] = int(done.stdout)
    return {**found, "ratio": found["trainer_bytes"] / found["hand_bytes"]}


def child(case, loop, options):
    """Train for a few steps and print the peak memory of this process, or of the accelerator where there is one."""
    kind, make, _ = CASES[case]
    task, config = Synthetic(kind, options.batch_size * 4), settings(case, options, 8)
    device = accelerate.Accelerator().device
    if loop == "trainer":
        Trainer(config, progress=False).run(Supervised(make(), task), task)
    else:
        ByHand(make(), task, config, device).advance(config.steps)
    if device.type == "cuda":
        print(torch.cuda.max_memory_allocated())
        return
    unit = 1 if sys.platform == "darwin" else 1024
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def teachers(options):
    """Epoch time with cached answers over epoch time with the teacher itself: resnet56 to resnet20, 100 classes."""
    task = Synthetic("images", options.batch_size * options.block, classes=100)
    online = FrozenTeacher(resnet(56, classes=100))
    result = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack():
        for name, top_k in (("all classes", None), ("top 8", 8)):
            passes = 1
            started = time.perf_counter()
            offline = build_cache(
                online,
                task,
                Path(folder) / name,
                passes=passes,
                batch_size=options.batch_size,
                top_k=top_k,
                temperature=4.0,
                progress=False,
            )
            building = time.perf_counter() - started
            ratios, seconds = [], []
            student = resnet(20, classes=100)
            for _ in range(options.epochs + 1):
                times = [epoch(student, teacher, task, options) for teacher in (online, offline)]
                ratios.append(times[1] / times[0])
                seconds.append(times[0])
            result[name] = {
                "offline_over_online": quartiles(ratios[1:]),
                "online_epoch_seconds": statistics.median(seconds[1:]),
                "build_seconds_per_pass": building / passes,
                "bytes_per_sample": offline.bytes_per_sample,
            }
    return result


def epoch(student, teacher, task, options):
    config = TrainingConfig(epochs=1, batch_size=options.batch_size, optimizer="sgd", learning_rate=0.01)
    started = time.perf_counter()
    Trainer(config, progress=False).run(Distil(student, teacher, SoftTargets(temperature=4.0)), task)
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("step", "memory", "teacher"))
    parser.add_argument(
        "--block", type=int, default=4, help="steps per block, and batches per epoch of the teacher part"
    )
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, metavar=("CASE", "LOOP"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.child:
        child(*options.child, options)
        return
    found = {"torch": torch.__version__, "threads": torch.get_num_threads(), "batch_size": options.batch_size}
    for case in CASES:
        found[case] = {}
        if options.only in (None, "step"):
            found[case]["step"] = measured = step_time(case, options)
            ratio, per_step = measured["ratio"], measured["trainer_seconds"]["median"]
            spread = f"{ratio['low']:.3f} to {ratio['high']:.3f}, {ratio['runs']} pairs"
            print(f"{case:10} step time, Trainer / by hand: {ratio['median']:.3f} ({spread}); {per_step * 1e3:.1f} ms")
            ratio = measured["processor_ratio"]
            spread = f"{ratio['low']:.3f} to {ratio['high']:.3f}"
            print(f"{case:10} processor time, Trainer / by hand: {ratio['median']:.3f} ({spread})")
        if options.only in (None, "memory"):
            found[case]["memory"] = measured = peak_memory(case, options)
            print(
                f"{case:10} peak memory, Trainer / by hand: {measured['ratio']:.3f}; {measured['trainer_bytes'] / 1e6:.0f} MB"
            )
    if options.only in (None, "teacher"):
        found["teacher"] = teachers(options)
        for name, measured in found["teacher"].items():
            ratio = measured["offline_over_online"]
            print(
                f"cache of {name}: epoch time, offline / online: {ratio['median']:.2f} ({ratio['low']:.2f} to "
                f"{ratio['high']:.2f}, {ratio['runs']} epochs); {measured['bytes_per_sample']:.0f} bytes per sample"
            )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
