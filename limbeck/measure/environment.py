"""The machine and the versions that numbers come from. Nothing here names the host or the user."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "onnxruntime", "onnx", "transformers", "numpy")


def environment() -> dict[str, Any]:
    """Versions, processor, cores, threads and memory, as plain JSON."""
    import psutil
    import torch

    found: dict[str, Any] = {"limbeck": _version("limbeck"), "python": platform.python_version()}
    found |= {name: version for name in PACKAGES if (version := _version(name))}
    found |= {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        "logical_cores": psutil.cpu_count() or os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "memory": psutil.virtual_memory().total,
    }
    if torch.cuda.is_available():
        found["accelerator"] = torch.cuda.get_device_name(0)
    return found


def cpu_name() -> str:
    """The processor's model name as the operating system gives it; the architecture where it gives none."""
    try:
        if platform.system() == "Linux":
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                if line.lower().startswith("model name"):
                    return line.partition(":")[2].strip()
        elif platform.system() == "Darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return platform.processor() or platform.machine() or "unknown"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return _source_version() if package == "limbeck" else ""


def _source_version() -> str:
    import limbeck

    return getattr(limbeck, "__version__", "0")
