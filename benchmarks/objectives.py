"""What objectives cost: every one at (batch 128, classes 1000), and those of language models over a large vocabulary.

    python benchmarks/objectives.py                                  both parts
    python benchmarks/objectives.py --only language --width 768 --teacher-width 1024 --rounds 3 --json out.json

Every objective: forward and backward on signals of the size in its row (logits (128, 1000), maps (128, 64, 8, 8), tokens (16, 64, 128)). The
objectives take turns, round by round, with soft targets written by hand in torch; the figure is the median over rounds of the ratio of
times, with quartiles. Memory is what both hold in tensors at their peak, counted.

Language: student and teacher states of 4 x 512 tokens through their output projections onto 128,256 words, forward and backward to the
student's states and projection. The plain form makes the whole logits, the chunked form is `LargeVocabulary`; both run in turn in one
process. Peak memory is the high-water mark of the process above what it held before (of the allocator on CUDA), so it has everything
in it: logits, gradients, casts of weights, what operations need inside. Processor time is shown too: on a busy machine it is the steadier.
"""

from __future__ import annotations

import argparse
import ctypes
import inspect
import json
import statistics
import time
from pathlib import Path

import torch
from torch.nn import functional

import limbeck.objectives as room
from limbeck.errors import LimbeckError
from limbeck.measure.tensors import peak_tensor_bytes
from limbeck.objectives import CrossEntropy, DecoupledKD, JensenShannon, LargeVocabulary, Objective, SoftTargets, Sum
from limbeck.signals import Signals

SHAPES = {
    "vectors": (128, 1000),
    "maps": (128, 64, 8, 8),
    "tokens": (16, 64, 128),
    "places": (8, 21, 32, 32),
    "pairs": (128, 2, 128),
}
BLOCK = 0.02  # seconds that the calls of one round and objective take together, or one call
EXAMPLES = 1000  # that a memory of examples holds
# how those are made that cannot be made without arguments or read something else than logits, and the shape they read
MADE = {
    "AngleRelations": (lambda o: o(), "vectors"),
    "AtExit": (lambda o: o("layer", SoftTargets()), "maps"),
    "AtPlaces": (lambda o: o(SoftTargets()), "places"),
    "AtTokens": (lambda o: o(room.Hint("layer"), "kept"), "tokens"),
    "AttentionTransfer": (lambda o: o("layer"), "maps"),
    "ExpertBalance": (lambda o: o("layer"), "tokens"),
    "Hint": (lambda o: o("layer"), "maps"),
    "LargeVocabulary": (None, "measured with the language objectives"),
    "LayeredSelfDistillation": (lambda o: o(("shallow", "deep"), classes=10, features_weight=0.0), "maps"),
    "MappedClasses": (lambda o: o(SoftTargets(), classes=tuple(range(1000))), "vectors"),
    "MappedTokens": (None, "MappedClasses, once two tokenizers are read"),
    "MarginHint": (lambda o: o("layer", norm="bn"), "maps"),
    "MaskedHints": (lambda o: o("layer"), "maps"),
    "MatrixOrientation": (lambda o: o("layer", "layer"), "maps"),
    "MemoryContrast": (lambda o: o(EXAMPLES, "layer", "layer"), "maps"),
    "MutualInformation": (lambda o: o("layer", "layer"), "vectors"),
    "NeuronSelectivity": (lambda o: o("layer"), "maps"),
    "NormDirection": (lambda o: o("layer"), "vectors"),
    "OnSignal": (lambda o: o("layer", SoftTargets()), "vectors"),
    "PairedContrast": (lambda o: o(), "pairs"),
    "PriorAdjusted": (lambda o: o(SoftTargets(), tuple(range(1, 1001))), "vectors"),
    "ReviewHints": (lambda o: o("layer"), "maps"),
    "Scheduled": (lambda o: o(SoftTargets()), "vectors"),
    "SingularHints": (lambda o: o(("layer", "layer")), "maps"),
    "Standardized": (lambda o: o(SoftTargets()), "vectors"),
    "TokenContrast": (lambda o: o("layer"), "tokens"),
    "TokenGraph": (lambda o: o("layer"), "tokens"),
    "TokenRelations": (lambda o: o("layer", "layer", heads=4), "tokens"),
    "VariationalHint": (lambda o: o("layer"), "maps"),
    "WhereCorrect": (lambda o: o(SoftTargets()), "vectors"),
}


def quartiles(values):
    if len(values) < 2:
        return {"median": values[0], "low": values[0], "high": values[0], "runs": 1}
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high, "runs": len(values)}


def words(found):
    return f"{found['median']:6.3f} ({found['low']:.3f} to {found['high']:.3f}, {found['runs']} rounds)"


def clocks():
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def timed(run, times=1):
    """Wall and processor seconds of one call."""
    before = clocks()
    for _ in range(times):
        run()
    return [(b - a) / times for a, b in zip(before, clocks())]


def by_hand(device):
    """Soft targets as one would write them in torch."""
    student, teacher = (torch.randn(SHAPES["vectors"], device=device) for _ in range(2))
    student.requires_grad_()

    def run():
        student.grad = None
        q, p = functional.log_softmax(student / 4.0, -1), functional.softmax(teacher / 4.0, -1)
        (16.0 * functional.kl_div(q, p, reduction="batchmean")).backward()

    return run


def ready(name, device):
    """Forward and backward of one objective on random signals of its shape, and that shape; or why there is none."""
    make, kind = MADE.get(name, (lambda o: o(), "vectors"))
    if make is None:
        return None, kind
    objective = make(getattr(room, name))
    shape = SHAPES[kind]
    torch.manual_seed(0)
    draw = {"device": device}
    fixed = {"bn:weight": torch.ones(shape[1], **draw), "bn:bias": torch.zeros(shape[1], **draw)}
    fixed["kept"] = torch.arange(shape[1], **draw)

    def size(signal):
        return SHAPES["vectors"] if signal == "logits" and kind == "maps" else shape

    signals = [
        Signals({n: fixed[n] if n in fixed else torch.randn(size(n), **draw).requires_grad_(own) for n in names})
        for names, own in ((objective.reads.student, True), (objective.reads.teacher, False))
    ]
    positions = {"tokens": shape[:2], "places": (shape[0], *shape[2:])}.get(kind, shape[:1])
    classes = {"maps": 10, "places": shape[1]}.get(kind, shape[-1])
    batch = {
        "labels": torch.randint(classes, positions, **draw),
        "index": torch.arange(shape[0], **draw),
        "epoch": 0,
        "private": torch.rand(positions, **draw),
    }
    with torch.no_grad():
        connectors = {n: m.to(device) for n, m in objective.connectors(*signals).items()}

    def run():
        for value in signals[0].values():
            value.grad = None
        for module in connectors.values():
            module.zero_grad()
        objective(*signals, batch, connectors).value.backward()

    run()
    return run, f"{kind} {shape}"


def classes(options):
    """Every public objective against soft targets by hand."""
    hand, runs, found = by_hand(options.device), {}, {}
    for name in sorted(room.__all__):
        made = getattr(room, name)
        if not inspect.isclass(made) or not issubclass(made, Objective) or made in (Objective, Sum):
            continue
        try:
            runs[name] = ready(name, options.device)
        except (LimbeckError, TypeError, RuntimeError) as error:
            runs[name] = None, f"not measured: {error}"
    seconds = {name: [] for name, (run, _) in runs.items() if run}
    clock = (
        1 if options.device == "cpu" and torch.get_num_threads() == 1 else 0
    )  # what another process takes is not counted
    warm = {None: timed(hand, 3), **{name: timed(runs[name][0]) for name in seconds}}
    times = {name: max(1, min(50, int(BLOCK / max(one[clock], 1e-6)))) for name, one in warm.items()}
    for number in range(options.rounds + 1):
        for name in seconds:
            base, own = timed(hand, times[None]), timed(runs[name][0], times[name])
            if number:
                seconds[name].append((own[clock], own[clock] / base[clock]))
    hand_bytes = peak_tensor_bytes(hand)
    for name, (run, note) in runs.items():
        if run is None:
            found[name] = {"note": note}
            print(f"{name:24} {note}")
            continue
        rounds, memory = seconds[name], peak_tensor_bytes(run)
        found[name] = {
            "shape": note,
            "seconds": quartiles([a for a, _ in rounds]),
            "ratio": quartiles([b for _, b in rounds]),
            "bytes": memory,
            "memory_ratio": memory / hand_bytes,
        }
        ratio = found[name]["ratio"]
        print(
            f"{name:24} {found[name]['seconds']['median'] * 1e3:8.2f} ms  time / soft targets by hand {words(ratio)}; memory "
            f"{memory / 1e6:7.2f} MB, {memory / hand_bytes:6.2f}; {note}"
        )
    return found


def high_water(run):
    """Bytes that a call adds at its peak to this process (Linux), or to CUDA's allocator."""
    if torch.cuda.is_initialized():
        return peak_tensor_bytes(run)

    def status(key):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls left in the allocator must not hide anything
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


def language(options):
    """The plain form and the chunked form of objectives over a large vocabulary, in turn."""
    device, n, v = options.device, options.batch * options.length, options.words
    torch.manual_seed(0)
    states = torch.randn(options.batch, options.length, options.width, device=device).requires_grad_()
    head = torch.empty(v, options.width, device=device).normal_(0, 0.05).requires_grad_()
    other = torch.randn(options.batch, options.length, options.teacher_width, device=device)
    teacher = torch.empty(v, options.teacher_width, device=device, dtype=torch.bfloat16).normal_(0, 0.05)
    labels = torch.randint(v, (options.batch, options.length), device=device)
    zeros = torch.zeros(v, device=device)
    lowered = options.precision == "bf16"

    def plain(objective):
        with torch.autocast(device, torch.bfloat16, enabled=lowered):
            own = functional.linear(states, head)
            with torch.no_grad():
                theirs = functional.linear(other, teacher if lowered else teacher.float())
            needed = {"logits": theirs} if objective.reads.teacher else {}
            if not needed:
                del theirs
            return objective(Signals({"logits": own}), Signals(needed), {"labels": labels}).value

    def chunked(objective):
        one = LargeVocabulary(objective, "head", "head", options.chunk)
        own = Signals({"head:input": states, "head:weight": head, "head:bias": zeros})
        theirs = Signals({"head:input": other, "head:weight": teacher, "head:bias": zeros})
        with torch.autocast(device, torch.bfloat16, enabled=lowered):
            return one(own, theirs, {"labels": labels}).value

    def measured(form, objective):
        """Wall and processor seconds, bytes, and the loss of one forward and backward pass."""
        seen = []

        def run():
            loss = form(objective)
            loss.backward()
            seen.append(float(loss.detach()))

        memory = high_water(lambda: seen.extend(timed(run)))
        return seen[1], seen[2], memory, seen[0]

    found = {}
    chosen = {"soft_targets": SoftTargets(2.0), "cross_entropy": CrossEntropy(), "jensen_shannon": JensenShannon()}
    chosen["decoupled"] = DecoupledKD()
    for name in options.objectives:
        rows = {"plain": [], "chunked": []}
        for _ in range(options.rounds + 1):
            for kind, form in (("plain", plain), ("chunked", chunked)):
                states.grad = head.grad = None
                rows[kind].append(measured(form, chosen[name]))
        rows = {kind: made[1:] for kind, made in rows.items()}  # the first round warms up
        pairs = list(zip(rows["chunked"], rows["plain"]))
        found[name] = {
            "time_ratio": quartiles([a[0] / b[0] for a, b in pairs]),
            "processor_ratio": quartiles([a[1] / b[1] for a, b in pairs]),
            "memory_ratio": quartiles([a[2] / b[2] for a, b in pairs]),
            **{
                kind: {"seconds": statistics.median(r[0] for r in made), "bytes": statistics.median(r[2] for r in made)}
                for kind, made in rows.items()
            },
            "losses": [rows["plain"][0][3], rows["chunked"][0][3]],
        }
        one = found[name]
        print(
            f"{name}: {n} positions x {v} words, widths {options.width} and {options.teacher_width}, {options.precision}, chunk "
            f"{options.chunk}\n  time, chunked / plain: {words(one['time_ratio'])}; processor time {words(one['processor_ratio'])}\n"
            f"  extra memory:          {words(one['memory_ratio'])}\n"
            f"  plain {one['plain']['seconds']:.2f} s, {one['plain']['bytes'] / 1e9:.2f} GB; chunked {one['chunked']['seconds']:.2f} s, "
            f"{one['chunked']['bytes'] / 1e9:.2f} GB; losses {one['losses'][0]:.6g} and {one['losses'][1]:.6g}",
            flush=True,
        )
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("classes", "language"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--words", type=int, default=128256)
    parser.add_argument("--width", type=int, default=768, help="of the student's states")
    parser.add_argument("--teacher-width", type=int, default=1024)
    parser.add_argument("--chunk", type=int, default=LargeVocabulary(SoftTargets()).chunk)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--objectives", nargs="+", default=["soft_targets", "cross_entropy", "jensen_shannon"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.device == "cuda":
        torch.cuda.init()
    if options.threads:
        torch.set_num_threads(options.threads)
    found = {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": options.device}
    for name, part in (("classes", classes), ("language", language)):
        if options.only in (None, name):
            found[name] = part(options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
