"""Models of transformers: pre-trained from a folder or the hub, or empty from a config.

Weights are read from safetensors only, and code from the hub is never run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.build import Factory, with_lineage
from limbeck.errors import ArtifactError, UsageError, did_you_mean

FORGOTTEN = ("_name_or_path", "_commit_hash", "transformers_version", "auto_map")


def _auto(auto_class: str) -> Any:
    import transformers

    known = [name for name in dir(transformers) if name.startswith("AutoModel")]
    if auto_class not in known:
        raise UsageError(f"transformers has no auto_class {auto_class!r}. {did_you_mean(auto_class, known)}")
    return getattr(transformers, auto_class)


def transformer(auto_class: str, config: dict[str, Any]) -> nn.Module:
    """The architecture that `config` describes, with random weights: `transformers.<auto_class>.from_config`.

    `config` is a transformers config as JSON, with its model_type. Raises UsageError for a missing or unknown model_type, one
    that needs code from the hub, or values that do not fit.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    auto = _auto(auto_class)
    if not isinstance(config, dict):
        raise UsageError(f"config must be a mapping of settings with a model_type, not {type(config).__name__}")
    settings = {key: value for key, value in config.items() if key not in FORGOTTEN}
    kind = settings.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        known = "" if not kind else " " + did_you_mean(str(kind), CONFIG_MAPPING)
        remote = " It would need code from the hub, which is never run." if "auto_map" in config else ""
        raise UsageError(f"transformers has no model_type {kind!r}.{remote}{known}")
    try:
        made = AutoConfig.for_model(kind, **settings)
        model = auto.from_config(made, trust_remote_code=False)
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"{auto_class} cannot be built from this {kind!r} config: {reason}") from error
    return with_lineage(model, _factory(auto_class, model.config))


def load_pretrained(
    path_or_name: str, auto_class: str = "AutoModelForSequenceClassification", **overrides: Any
) -> nn.Module:
    """A pre-trained model from a transformers folder or hub name, in float32 and eval mode, with its lineage.

    auto_class: which head, e.g. "AutoModelForCausalLM", "AutoModelForImageClassification". overrides: config settings to
    change, e.g. num_labels=4. Raises UsageError for an unknown class, ArtifactError when there is no such folder or name, no
    safetensors file, a damaged one, or a model that needs code from the hub.
    """
    from transformers.utils import logging

    auto = _auto(auto_class)
    folder = Path(path_or_name).expanduser()
    local = folder.is_dir()
    shown = logging.is_progress_bar_enabled()
    if local:
        logging.disable_progress_bar()
    try:
        model = auto.from_pretrained(
            str(folder) if local else path_or_name,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=local,
            dtype=torch.float32,
            **overrides,
        )
    except Exception as error:  # transformers, safetensors and the network raise many kinds
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(
            f"{auto_class} cannot be loaded from {path_or_name!r}: {reason}. It must be a transformers folder with "
            "config.json and model.safetensors, or a hub name when online"
        ) from error
    finally:
        if shown:
            logging.enable_progress_bar()
    return with_lineage(model.eval(), _factory(auto_class, model.config))


def _factory(auto_class: str, config: Any) -> Factory:
    settings = json.loads(config.to_json_string(use_diff=False))
    settings = {key: value for key, value in settings.items() if key not in FORGOTTEN}
    return Factory("limbeck.models.pretrained:transformer", {"auto_class": auto_class, "config": settings})
