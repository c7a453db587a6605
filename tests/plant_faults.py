"""Plant deliberate faults in the code, one at a time, and see that the tests catch each.

    python tests/plant_faults.py [WORD ...]     only faults whose name has one of the words

Each fault replaces one piece of text in a copy of the package and runs the tests that should notice. A fault is caught when a
test fails; a test run that cannot start does not count. The exit code is 0 when every fault was caught.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent

# name, file, text, what it becomes, tests that should notice
Fault = tuple[str, str, str, str, str]


def caught(file: str, text: str, becomes: str, tests: str) -> tuple[bool, str]:
    """Whether a test fails with the fault planted, and the first line that says so."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("limbeck", "tests", "recipes", "docs"):
            shutil.copytree(ROOT / name, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "Makefile", "data.mk"):
            shutil.copy(ROOT / name, folder)
        path = Path(folder, "limbeck", file)
        source = path.read_text()
        if source.count(text) != 1:
            return False, f"the text stands {source.count(text)} times in {file}: the fault needs a new place"
        path.write_text(source.replace(text, becomes))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *tests.split()]
        environment = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return done.returncode == 1 and any(line.startswith("FAILED") for line in lines), (
        lines or done.stdout.splitlines()[-1:] or [""]
    )[0]


def every() -> list[Fault]:
    """The faults of all files in tests/faults."""
    found: list[Fault] = []
    for path in sorted(Path(__file__).with_name("faults").glob("*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found += module.FAULTS
    for fault in found:
        if len(fault) != 5:
            raise SystemExit(f"a fault is name, file, text, what it becomes, tests; this is not one: {fault}")
    return found


def main() -> int:
    words = sys.argv[1:]
    chosen = [fault for fault in every() if not words or any(word in fault[0] for word in words)]
    missed = 0
    for name, file, text, becomes, tests in chosen:
        began = time.perf_counter()
        found, line = caught(file, text, becomes, tests)
        missed += not found
        sys.stdout.write(
            f"{'caught' if found else 'MISSED'}  {name:<38} {time.perf_counter() - began:5.0f} s  {line[:110]}\n"
        )
        sys.stdout.flush()
    sys.stdout.write(f"{len(chosen) - missed} of {len(chosen)} faults caught\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
