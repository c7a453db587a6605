"""Runs in a process of its own, started by `limbeck.measure.memory`: one inference, and what it took in resident memory.

Started by path, so that measuring an ONNX file loads ONNX Runtime and nothing else. Reads a JSON job from standard
input, writes `{"before": bytes, "peak": bytes}` as the last line of standard output.
"""

import json
import os
import sys
import threading

if __name__ == "__main__":
    sys.path.pop(0)  # this file's own folder: its neighbours must not shadow anybody's modules


def resident():
    """Resident bytes of this process now."""
    import psutil

    return psutil.Process(os.getpid()).memory_info().rss


def high_water():
    """The kernel's own record of the largest resident size of this process; None where there is none."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


class Sampler(threading.Thread):
    """The largest resident size seen every millisecond: sees nothing shorter, and is all there is outside Linux."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.done = resident(), threading.Event()

    def run(self):
        while not self.done.wait(0.001):
            self.peak = max(self.peak, resident())

    def finish(self):
        self.done.set()
        self.join()
        return max(self.peak, resident())


def onnx_job(job):
    import numpy
    import onnxruntime

    with numpy.load(job["feeds"], allow_pickle=False) as stored:
        feeds = {name: stored[name] for name in stored.files}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    options.inter_op_num_threads = 1
    options.log_severity_level = 3

    def run():
        session = onnxruntime.InferenceSession(job["path"], options, providers=["CPUExecutionProvider"])
        session.run(None, feeds)
        return session

    return run


def artifact_job(job):
    import numpy
    import torch

    import limbeck
    from limbeck.signals import call

    torch.set_num_threads(job["threads"])
    with numpy.load(job["feeds"], allow_pickle=False) as stored:
        batch = {name: torch.from_numpy(stored[name]) for name in stored.files}

    def run():
        arguments = {"trust": job["trust"]} if job["trust"] else {}
        model = limbeck.load(job["path"], **arguments).eval()
        with torch.no_grad():
            call(model, batch)
        return model

    return run


def main():
    job = json.loads(sys.stdin.read())
    run = {"onnx": onnx_job, "artifact": artifact_job}[job["kind"]](job)
    before = resident()
    sampler = Sampler() if high_water() is None else None
    if sampler:
        sampler.start()
    kept = run()
    peak = sampler.finish() if sampler else max(high_water(), resident())
    del kept
    print(json.dumps({"before": before, "peak": peak}))


if __name__ == "__main__":
    main()
