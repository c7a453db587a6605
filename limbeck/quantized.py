"""quantize: one call from a float model to a quantized one, with the default method of its width.

    small = lb.quantize(model, bits=4)             weights only, no data
    small = lb.quantize(model, bits=2, task=task)  calibrated on the task's train split
    small = lb.quantize(model, bits=1, task=task)  trained on the float model's answers
    small.model, small.save("small/")

The model itself stays as it is. What stays in float and why is in `left_alone`. Methods and defaults: `limbeck.quantization.methods`; how the defaults
were chosen: docs/quantization.md. In a recipe, the same steps are written out.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from limbeck import artifact
from limbeck.errors import UsageError, did_you_mean
from limbeck.measure.size import state_bytes
from limbeck.objectives import EmbeddingDistance, SoftTargets
from limbeck.objectives.base import Objective
from limbeck.plan import Plan, apply, in_sequence
from limbeck.pruning.depth import find_stacks
from limbeck.quantization.code_tuning import TuneCodes, finish_codes, tune_codes
from limbeck.quantization.embeddings import QuantizeEmbeddings
from limbeck.quantization.folding import FoldBatchNorm
from limbeck.quantization.hessian import matrix
from limbeck.quantization.methods import DEFAULTS, METHODS, RATES, TERNARY, WIDTHS, Method, Settings
from limbeck.quantization.modules import QuantizedModule, kernel_table
from limbeck.quantization.quantization_aware import finish_qat, prepare_qat
from limbeck.quantization.replacement import why_not
from limbeck.quantization.rounding import to_text
from limbeck.quantization.specification import Specification
from limbeck.signals import match_paths
from limbeck.tasks.drawn import Drawn
from limbeck.tasks.retrieval import Retrieval
from limbeck.teachers import FrozenTeacher
from limbeck.training import Distil, Trainer, TrainingConfig

TRAINING = TrainingConfig(steps=300, batch_size=8, warmup=0.1, gradient_clipping=1.0, precision="bf16")
CODE_RATE = 10  # of the steps that choose codes, over the learning rate


@dataclass(frozen=True)
class Quantized:
    """The quantized model, in evaluation mode; the plan that made it of the (where it was trained: the trained) float model; the method.

    left_alone: modules with weights that stay in float, and why. nbytes: of all parameters and buffers, as they are stored in a file.
    """

    model: nn.Module
    plan: Plan
    method: str
    bits: float
    left_alone: Mapping[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return state_bytes(self.model.state_dict())

    @property
    def quantized_bytes(self) -> int:
        """Of the quantized modules alone: codes, scales, zero points, biases."""
        return sum(module.nbytes for module in self.model.modules() if isinstance(module, QuantizedModule))

    def save(self, folder: Path | str, **settings: Any) -> Path:
        """Write it as an artifact; settings as in `limbeck.save`, such as `factory` for a model that Limbeck did not build."""
        return artifact.save(self.model, folder, **settings)

    def to_json(self) -> dict[str, Any]:
        """What was done, for scripts."""
        return {
            "bits": self.bits,
            "method": self.method,
            "bytes": self.nbytes,
            "quantized_bytes": self.quantized_bytes,
            "kernels": kernel_table(self.model),
            "left_alone": dict(self.left_alone),
        }


def quantize(
    model: nn.Module,
    bits: float = 8,
    task: Any = None,
    *,
    method: str | None = None,
    group_size: int = 64,
    ends: int | None = 8,
    embeddings: int | None = 8,
    only: Sequence[str] | str = "*",
    ignore: Sequence[str] | str = (),
    compute: str = "bfloat16",
    scale_type: str | None = None,
    examples: int = 128,
    batch_size: int = 16,
    train: TrainingConfig | None = None,
    objective: Objective | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> Quantized:
    """Quantize a copy of the model. Batch norms are folded into the layers before them first.

    bits        8 to 2, 1.58 (-1, 0, 1) or 1 (signs) per weight
    task        where calibration and training take their examples from, its train split only; None: a method that needs no data
    method      a name of `limbeck.quantization.methods.METHODS`; None: the default of the width, with a task and without
    group_size  consecutive inputs that share a scale, below 8 bits
    ends        bits of layers outside the stacks of like blocks (the first and the last ones, such as a language model's head), where
                fewer are asked for; None leaves them in float
    embeddings  8 to 2 bits for tables of embeddings, one scale per row (below 8 bits per group); None leaves them in float
    only, ignore      patterns of module paths
    compute     type of products with weights below 8 bits: "bfloat16" (fast where the processor has it) or "float32"
    scale_type  type of stored scales: "float16" for what goes to GPTQ or GGUF files, "bfloat16", "float32"; None: as `Quantize` has it
    examples, batch_size    calibration. seed: draws the examples, and decides the training; None: the first ones, evenly spaced
    train, objective        of methods that train: the schedule, by default 300 steps at the rate `RATES` has for the width, and what is learned of
                            the float model, by default its logits, or its embeddings

    Raises UsageError for another width or method, one that does not go with the width, and one that reads data without a task.
    """
    width = _width(bits)
    name = DEFAULTS[width][task is not None] if method is None else method
    chosen = _method(name, width, task)
    if train is not None and not isinstance(train, TrainingConfig):
        raise UsageError(f"train: expected a TrainingConfig, got {type(train).__name__}")
    if (train is not None or objective is not None) and chosen.training is None:
        raise UsageError(
            f"method {name!r} trains nothing: leave train and objective out, or choose one of {_trained()}"
        )
    for field_name, value, what in (
        ("ends", ends, "layers outside the blocks"),
        ("embeddings", embeddings, "embeddings"),
    ):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 2 <= value <= 8):
            raise UsageError(f"{field_name}={value!r}: 2 to 8 bits for the {what}, or None to leave them in float")
    patterns = [(value,) if isinstance(value, str) else tuple(value) for value in (only, ignore)]
    work, plans = copy.deepcopy(model).eval(), []
    if (folds := _folds(work, task)) is not None:
        plans.append(folds)
        work = apply(work, folds)
    outer = _outside(work, *patterns) if width < (ends or 32) else ()
    settings = Settings(
        width, group_size, patterns[0], (*patterns[1], *outer), examples, batch_size, compute, scale_type
    )
    data = task if seed is None or task is None else Drawn(task, seed)
    if chosen.training is not None:
        config = train or dataclasses.replace(TRAINING, learning_rate=RATES[width])
        teacher = FrozenTeacher(copy.deepcopy(work), precision=config.precision)
        goal = objective or _imitation(task)
        work, plan = _trained_on(work, chosen, settings, task, teacher, goal, config, seed or 0, progress)
        plans.append(plan)
        work = apply(work, plan)
    else:
        for transform in chosen.steps(settings):
            plans.append(transform.plan(work, data))
            work = apply(work, plans[-1])
    if outer and ends is not None:
        wide = Settings(8, group_size, outer, (), examples, batch_size, compute, scale_type).quantize(bits=ends)
        plans.append(wide.plan(work))
        work = apply(work, plans[-1])
    left = dict(plans[-1].decisions["left_alone"])
    if embeddings is not None:
        tables = _tables(settings, embeddings).plan_modules(work)
        left |= tables.decisions["left_alone"]
        if tables.decisions["modules"]:
            plans.append(tables)
            work = apply(work, tables)
    left = {path: reason for path, reason in left.items() if not isinstance(work.get_submodule(path), QuantizedModule)}
    return Quantized(work.eval(), plans[0] if len(plans) == 1 else in_sequence(*plans), name, width, left)


def _width(bits: float) -> float:
    width = TERNARY if bits in (1.6, TERNARY) else bits
    if isinstance(bits, bool) or width not in WIDTHS:
        raise UsageError(f"bits={bits!r}: allowed are {', '.join(map(str, WIDTHS))}")
    return width


def _trained() -> str:
    return ", ".join(repr(name) for name, method in METHODS.items() if method.training)


def _method(name: str, width: float, task: Any) -> Method:
    if name not in METHODS:
        raise UsageError(f"method={name!r}: {did_you_mean(str(name), METHODS)}")
    method = METHODS[name]
    if width not in method.bits:
        fitting = ", ".join(repr(other) for other, m in METHODS.items() if width in m.bits)
        raise UsageError(
            f"method={name!r} is not for {width} bits, only {', '.join(map(str, method.bits))}; at {width}: {fitting}"
        )
    if method.reads_data and task is None:
        free = ", ".join(repr(other) for other, m in METHODS.items() if width in m.bits and not m.reads_data)
        raise UsageError(
            f"method={name!r} reads a task's train split and no task was given: pass task=..., or use {free}"
        )
    return method


def _folds(model: nn.Module, task: Any) -> Plan | None:
    """The plan that folds batch norms into the layers before them; None where there are none, or nothing says what reads what."""
    try:
        plan = FoldBatchNorm().plan(model, task)
    except UsageError:  # a model that cannot be traced, and no task
        return None
    return plan if plan.decisions["pairs"] else None


def _outside(model: nn.Module, only: tuple[str, ...], ignore: tuple[str, ...]) -> tuple[str, ...]:
    """Paths of layers that can be quantized and lie in no stack of like blocks; none where the model has no such stack."""
    try:
        stacks = find_stacks(model)
    except UsageError:
        return ()
    wanted = {path for pattern in only for path in match_paths(model, pattern)}
    ignored = [path for pattern in ignore for path in match_paths(model, pattern)]
    found = []
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{stack}.") for stack in stacks)
        left = any(path == other or path.startswith(f"{other}.") for other in ignored)
        if path in wanted and not inside and not left and hasattr(module, "weight") and why_not(module) is None:
            found.append(path)
    return tuple(found)


def _tables(settings: Settings, bits: int) -> QuantizeEmbeddings:
    fine = {} if bits == 8 else {"weights": settings.weights, "method": "mse"}
    same = {"scale_type": settings.scale_type, "only": settings.only, "ignore": settings.ignore}
    return QuantizeEmbeddings(bits, **fine, **same)


def _imitation(task: Any) -> Objective:
    return (
        EmbeddingDistance(mean_squared_error=0.0, cosine=1.0)
        if isinstance(task, Retrieval)
        else SoftTargets(temperature=1.0)
    )


def _trained_on(
    work: nn.Module,
    method: Method,
    settings: Settings,
    task: Any,
    teacher: FrozenTeacher,
    objective: Objective,
    config: TrainingConfig,
    seed: int,
    progress: bool,
) -> tuple[nn.Module, Plan]:
    """The float model with the trained weights, and the plan that quantizes it to what was trained."""
    (start,) = method.steps(settings)
    plan = start.plan(work, task)
    trainer = Trainer(config, None, seed=seed, progress=progress, title="quantization")
    if method.training == "codes":
        work = tune_codes(work, plan)
        trainer.run(TuneCodes(work, teacher, objective, rate=CODE_RATE * config.learning_rate), task)
        return finish_codes(work)
    work = prepare_qat(work, plan, learned=True)
    trainer.run(Distil(work, teacher, objective), task)
    work, plan = finish_qat(work)
    return work, _with_codes(work, plan)


def _with_codes(model: nn.Module, plan: Plan) -> Plan:
    """The plan with codes and learned scales as data: a model's file holds them already, so that its lineage need not."""
    modules, weights = {}, {}
    for path, entry in plan.decisions["modules"].items():
        specification, layer = Specification.from_json(entry), model.get_submodule(path)
        weights[path] = to_text(specification.encode(matrix(layer)))
        modules[path] = {**entry, "weight": {**entry["weight"], "scale": None}}
    rounding = {"method": "quantization_aware"}
    return Plan(plan.kind, {**plan.decisions, "modules": modules, "rounding": rounding, "data": {"weights": weights}})
