"""Every code block of the README and of docs/ is run: Python as it stands, recipes by the schema, commands by the command line."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from limbeck import cli
from limbeck.recipe import Recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page):
    return FENCE.findall(page.read_text())


def targets():
    return set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text() + (ROOT / "data.mk").read_text(), re.MULTILINE))


def command(line, monkeypatch, there):
    """One shell line: `limbeck ...` runs; make targets must exist; anything else is refused."""
    words = shlex.split(line, comments=True)
    if words[:1] == ["limbeck"]:
        if any(word.startswith("recipes/") for word in words):
            return Recipe.load(ROOT / next(word for word in words if word.startswith("recipes/")))
        monkeypatch.setattr(sys, "argv", words)
        try:
            cli.main()
        except SystemExit as stop:
            assert not stop.code, line
    elif words[:1] == ["make"]:
        assert set(words[1:]) <= targets(), line
    else:
        assert words[:2] in (["pip", "install"], ["git", "clone"]) or words[:1] == ["cd"], (
            f"the docs show a command no test runs: {line}"
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIMBECK_STORE", str(tmp_path / "store"))
    names: dict = {"__name__": "__main__"}
    for kind, text in blocks(page):
        if kind == "python":
            exec(compile(text, f"{page.name}", "exec"), names)
        elif kind == "yaml":
            recipe = Recipe.parse(yaml.safe_load(text), page.name)
            (tmp_path / f"{recipe.name}.yaml").write_text(text)
        elif kind == "bash":
            for line in text.replace("\\\n", " ").splitlines():
                if line.strip() and not line.startswith("#"):
                    command(line, monkeypatch, tmp_path)
        else:
            assert kind in ("text", "json"), f"{page.name} has a block of kind {kind!r} that no test runs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
