"""Recipe: teacher, student, task, ordered steps, budget and exports; YAML and Python are the same thing.

    name: digits
    task: {class: ImageClassification, dataset: digits}
    teacher: {model: {class: resnet, depth: 20, channels: 1}, train: {epochs: 20}}
    student: {class: resnet, depth: 8, channels: 1}
    steps:
      - distill: {objective: [{class: SoftTargets, temperature: 4}], train: {epochs: 20}}
      - prune: {keep: 0.5}
      - quantize: {bits: 8}
    budget: {bytes: 100 kB, drop: 1%}
    exports: [onnx]

Every field is checked before anything runs; an error names its path, the value, what is allowed and the near names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from limbeck.errors import UsageError, did_you_mean
from limbeck.files import write_text

Export = Literal[
    "onnx",
    "onnx_int8",
    "onnx_int8_dynamic",
    "onnx_weight_only",
    "transformers",
    "sentence_transformers",
    "compressed_tensors",
    "gptq",
    "gguf",
]
Spec = dict[str, Any] | str


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ModelSource(_Strict):
    """A model that is trained here, or comes trained."""

    model: Spec = Field(description="A class of limbeck.models with its arguments, or {path: an artifact folder}.")
    train: dict[str, Any] | None = Field(
        None, description="TrainingConfig fields; absent for a model that comes trained."
    )
    objective: list[Spec] | Spec | None = Field(None, description="What training minimizes; the task loss when absent.")
    seed: int | None = Field(
        None,
        ge=0,
        description="Seed of its training; the recipe's when absent. Fix it to share one teacher among seeds.",
    )


class Measure(_Strict):
    """How the stages are measured."""

    split: Literal["test", "validation"] = Field(
        "test", description="Split of the reported quality. Nothing is chosen on it."
    )
    batch_size: int = Field(1, ge=1, description="Batch of the latency measurement.")
    throughput_batch_size: int = Field(64, ge=1, description="Batch of the throughput measurement.")
    threads: int = Field(2, ge=1, description="Threads of the inference runtime.")
    rounds: int = Field(
        30, ge=3, description="Interleaved rounds over all stages; the median and quartiles are reported."
    )
    length: int | None = Field(
        None, ge=1, description="Tokens per example for text models; the task's own when absent."
    )
    limit: int | None = Field(None, ge=1, description="Use only that many examples for quality; all when absent.")


class ExportForm(_Strict):
    """A form of an export with its settings."""

    form: Export
    accuracy_level: int | None = Field(None, ge=0, le=4, description="onnx_weight_only: 1 float32, 4 int8 activations.")
    input_ranges: Literal["token", "tensor"] | None = Field(
        None,
        description="onnx, dynamic inputs: a range for each token, as torch computes (absent: this), or one for all of an input (faster).",
    )
    requantize: Literal["q8_0", "q5_0", "q4_1", "q4_0"] | None = Field(
        None, description="gguf: round every linear layer again, whatever its grid is."
    )
    tokenizer: Literal[False] | None = Field(None, description="gguf: false writes token numbers only.")


class Recipe(_Strict):
    """What `limbeck compress` carries out."""

    name: str = Field(description="A short name; it titles the report.", pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")
    seed: int = Field(0, ge=0, description="Decides every random number.")
    task: Spec = Field(description="What the model is for: a class of limbeck.tasks with its fields.")
    teacher: ModelSource | list[ModelSource] | None = Field(
        None, description="Where training signals come from; a list of models teaches as an ensemble."
    )
    student: Spec | None = Field(
        None,
        description="The small model: a class of limbeck.models, {path: ...}, or 'teacher' for a copy of the teacher.",
    )
    baseline: bool = Field(
        False, description="Also train the student alone under the first distill step's schedule, for comparison."
    )
    steps: list[dict[str, Any]] = Field(
        min_length=1, description="One mapping per step: its verb and the verb's fields."
    )
    budget: dict[str, float | int | str | None] | None = Field(
        None, description="bytes, latency, memory, drop: limits in measured units."
    )
    exports: list[Export | ExportForm] = Field(
        default_factory=lambda: ["onnx"], description="Files that run elsewhere: names, or a name with settings."
    )
    measure: Measure = Field(default_factory=Measure)

    @staticmethod
    def parse(value: Any, where: str = "recipe") -> Recipe:
        """Check a mapping. Raises UsageError with one line per mistake."""
        if not isinstance(value, Mapping):
            raise UsageError(f"{where}: a recipe is a mapping with the fields {', '.join(Recipe.model_fields)}")
        try:
            return Recipe.model_validate(dict(value))
        except ValidationError as error:
            other = "ModelSource" if isinstance(value.get("teacher"), list) else "list[ModelSource]"
            problems = [p for p in error.errors() if other not in p["loc"][1:2] and _of_given_form(value, p["loc"])]
            raise UsageError("\n".join(_explain(where, problem) for problem in problems)) from None

    @staticmethod
    def load(path: Path | str) -> Recipe:
        """Read a YAML (or JSON) recipe. Raises UsageError for a missing, unreadable or malformed file."""
        try:
            text = Path(path).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the recipe {path}: {getattr(error, 'strerror', None) or error}") from None
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"{path} is not YAML: {error}") from None
        return Recipe.parse(value, str(path))

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_json(), sort_keys=False, allow_unicode=True, width=110)

    def save(self, path: Path | str) -> None:
        write_text(path, self.to_yaml())


def _of_given_form(value: Mapping[str, Any], place: tuple[Any, ...]) -> bool:
    """Whether a problem is one of what was given: an export is a name or a mapping, and pydantic lists the faults of both."""
    if place[:1] != ("exports",) or len(place) < 3:
        return True
    return (place[2] == "ExportForm") == isinstance(value["exports"][place[1]], Mapping)


def _explain(where: str, problem: Mapping[str, Any]) -> str:
    branches = ("ModelSource", "list[ModelSource]", "ExportForm")
    parts = [str(part) for part in problem["loc"] if part not in branches]
    place = ".".join(part for part in parts if not part.startswith("literal["))
    if problem["type"] == "extra_forbidden":
        name = str(problem["loc"][-1])
        owner = {"teacher": ModelSource, "measure": Measure, "exports": ExportForm}.get(str(problem["loc"][0]), Recipe)
        owner = owner if len(problem["loc"]) > 1 else Recipe
        return f"{where}: no field is called {place!r}. {did_you_mean(name, owner.model_fields)}"
    if problem["type"] == "missing":
        return f"{where}: the field {place!r} is missing"
    given = problem.get("input")
    return f"{where}: {place}: {problem['msg']}" + ("" if isinstance(given, dict) else f", got {given!r}")


def schema() -> dict[str, Any]:
    """The JSON schema of recipes, for completion in editors; it lists every step and every public class with its fields."""
    from limbeck import vocabulary
    from limbeck.steps import VERBS, verb_fields

    made = Recipe.model_json_schema()
    made["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    made["title"] = "Limbeck recipe"
    definitions = made.setdefault("$defs", {})
    for role in vocabulary.ROOMS:
        definitions[role] = {
            "anyOf": [
                {"type": "string"},
                _own_schema(),
                *(_class_schema(n, m) for n, m in sorted(vocabulary.names(role).items())),
            ]
        }
    own = {
        "type": "object",
        "properties": {"path": {"type": "string", "description": "An artifact folder."}},
        "required": ["path"],
        "additionalProperties": False,
    }
    definitions["model"]["anyOf"].append(own)
    made["properties"]["task"] = {"$ref": "#/$defs/task"}
    made["properties"]["student"] = {"$ref": "#/$defs/model"}
    definitions["ModelSource"]["properties"]["model"] = {"$ref": "#/$defs/model"}
    definitions["ModelSource"]["properties"]["train"] = _fields_schema(verb_fields("train")["train"])
    steps = [
        {
            "type": "object",
            "properties": {verb: _fields_schema(verb_fields(verb))},
            "required": [verb],
            "additionalProperties": False,
        }
        for verb in VERBS
    ]
    made["properties"]["steps"]["items"] = {"anyOf": steps}
    return made


def _class_schema(name: str, made: Any) -> dict[str, Any]:
    from limbeck.vocabulary import accepts_anything, parameters

    text = (getattr(made, "__doc__", None) or "").strip().partition("\n")[0]
    return {
        "type": "object",
        "description": text,
        "properties": {"class": {"const": name}, **{n: {} for n in parameters(made)}, "weight": {"type": "number"}},
        "required": ["class"],
        "additionalProperties": accepts_anything(made),
    }


def _own_schema() -> dict[str, Any]:
    """A class of one's own, by dotted path."""
    return {
        "type": "object",
        "properties": {"class": {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_]+"}},
        "required": ["class"],
    }


def _fields_schema(fields: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: (_fields_schema(value) if isinstance(value, Mapping) else {}) for name, value in fields.items()}
    return {"type": ["object", "null"], "properties": shown, "additionalProperties": False}
