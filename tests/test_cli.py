"""The command line: help, JSON, exit codes, no traceback for a user's mistake."""

import json
import os
import subprocess
import sys

import pytest

from limbeck import cli


def run(*arguments, monkeypatch, capsys):
    """The command in this process: (exit code, standard output, standard error)."""
    monkeypatch.setattr(sys, "argv", ["limbeck", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def limbeck(monkeypatch, capsys):
    return lambda *arguments: run(*arguments, monkeypatch=monkeypatch, capsys=capsys)


@pytest.mark.parametrize(
    "command", ["init", "compress", "compare", "measure", "export", "quantize", "report", "schema", "version"]
)
def test_every_command_explains_itself(limbeck, command):
    code, out, _ = limbeck(command, "--help")
    assert code == 0 and "--help" in out and len(out) > 200


def test_init_writes_a_recipe_that_parses_and_does_not_overwrite(limbeck, tmp_path):
    from limbeck.recipe import Recipe

    path = tmp_path / "r.yaml"
    code, out, _ = limbeck("init", path, "--json")
    assert code == 0 and json.loads(out) == {"recipe": str(path)}
    Recipe.load(path)
    path.write_text("mine")
    code, _, err = limbeck("init", path)
    assert code == 2 and "--force" in err and path.read_text() == "mine"
    assert limbeck("init", path, "--force")[0] == 0 and path.read_text() != "mine"


def test_schema_and_version_are_json(limbeck):
    assert json.loads(limbeck("schema")[1])["title"] == "Limbeck recipe"
    assert set(json.loads(limbeck("version", "--json")[1])) == {"limbeck"}


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["compress", "none.yaml", "--out", "x"], 2, "none.yaml"),
        (["compress"], 2, "recipe"),
        (["compare", "none.yaml", "--objectives", "recipe,CrossEntropy", "--out", "x"], 2, "none.yaml"),
        (["compare", "none.yaml", "--out", "x"], 2, "objectives"),
        (["compres"], 2, "compress"),
        (["measure", "nowhere"], 4, "nowhere"),
        (["quantize", "nowhere", "--out", "x"], 4, "nowhere"),
        (["report", "nowhere"], 4, "nowhere"),
        (["export", "nowhere", "--out", "x.onnx"], 4, "nowhere"),
    ],
)
def test_mistakes_end_in_one_message_and_a_code(limbeck, tmp_path, monkeypatch, arguments, code, word):
    monkeypatch.chdir(tmp_path)
    found, out, err = limbeck(*arguments)
    assert found == code and word in (out + err).lower() and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_field_names_the_near_one(limbeck, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: a\ntask: ImageClassification\nstudnt: resnet\nsteps: [{prune: {keep: 0.5}}]\n")
    code, _, err = limbeck("compress", recipe, "--out", tmp_path / "out")
    assert code == 2 and "studnt" in err and "student" in err and not (tmp_path / "out").exists()


def test_the_whole_command_in_a_process_of_its_own(tmp_path):
    """compress --json, then measure, export and report on what it wrote; a missed budget is exit code 7 and loses nothing."""
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: cli\ntask: ImageClassification\nstudent: {class: resnet, depth: 8, channels: 1, width: 4}\n"
        "steps: [{train: {train: {steps: 5}}}]\nbudget: {bytes: 10 B}\nmeasure: {rounds: 3, throughput_batch_size: 4, threads: 1}\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LIMBECK_STORE": str(tmp_path / "store")}

    def call(*arguments):
        command = [sys.executable, "-m", "limbeck", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)

    done = call("compress", recipe, "--out", tmp_path / "run", "--json")
    assert done.returncode == 7 and "budget" in done.stderr and "Traceback" not in done.stderr
    found = json.loads(done.stdout)
    assert found["report"]["budget"][0]["met"] is False and (tmp_path / "run" / "report.html").exists()
    report = call("report", tmp_path / "run", "--json", "--out", tmp_path / "page.html")
    assert report.returncode == 0 and json.loads(report.stdout) == found["report"] and (tmp_path / "page.html").exists()
    measured = json.loads(call("measure", tmp_path / "run", "--json", "--threads", 1).stdout)
    accuracy = found["report"]["stages"][-1]["measurements"]["accuracy"]["value"]
    assert measured["accuracy"]["value"] == pytest.approx(accuracy, abs=0.01)
    exported = json.loads(call("export", tmp_path / "run", "--out", tmp_path / "m.onnx", "--json").stdout)
    assert exported["bytes"] == (tmp_path / "m.onnx").stat().st_size and exported["difference"] < 1e-4
