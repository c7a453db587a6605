"""Report and Stage: reading back what was written, and refusing what is no report."""

import copy
import io
import itertools
import json
import random

import pytest
from rich.console import Console
from sample_report import sample_report

from limbeck.errors import ArtifactError
from limbeck.report import Report, pareto, stage_table


def test_json_round_trip(tmp_path):
    value = sample_report()
    report = Report.from_json(value)
    assert report.to_json() == value
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report
    assert json.loads((tmp_path / "report.json").read_text()) == value


def test_what_it_knows_of_itself():
    report = Report.from_json(sample_report())
    assert report.metric == "accuracy" and report.final.name == "ONNX int8"
    assert report.measured()[:3] == ["accuracy", "loss", "calibration_error"]
    assert report.measured()[-2:] == ["throughput", "peak_memory"]
    assert report.stages[-1].runtime == "onnxruntime" and report.stages[3].value("latency") is None


def at(value, *path):
    for key in path[:-1]:
        value = value[key]
    return value, path[-1]


WRONG = {
    "no format": (("format",), None, "format"),
    "a newer format": (("format",), 2, "newer"),
    "an unknown field": (("stagess",), [], "stages"),
    "no stages": (("stages",), [], "at least one"),
    "stages of text": (("stages",), "teacher", "stages"),
    "a nameless stage": (("stages", 0, "name"), 3, "name"),
    "a value of text": (("stages", 1, "measurements", "bytes", "value"), "small", "bytes.value"),
    "a value that is not finite": (("stages", 1, "measurements", "bytes", "value"), float("nan"), "finite"),
    "a true value": (("stages", 1, "measurements", "bytes", "value"), True, "bytes.value"),
    "quartiles that exclude the value": (("stages", 0, "measurements", "latency", "low"), 9.0, "quartiles"),
    "no runs": (("stages", 0, "measurements", "latency", "runs"), 0, "runs"),
    "an unknown direction": (("stages", 0, "measurements", "latency", "better"), "faster", "better"),
    "a misfiled measurement": (("stages", 0, "measurements", "latency", "name"), "loss", "filed"),
    "layers that are no rows": (("stages", 0, "layers"), [1], "layers"),
    "a layer without bits": (
        ("stages", 0, "layers", 0),
        {"path": "a", "kind": "b", "parameters": 1, "bytes": 4},
        "bits",
    ),
    "bins that are no rows": (("stages", 0, "reliability", "bins"), [{}], "bins"),
    "a direction of the task": (("task", "better"), "up", "task.better"),
    "a budget without an answer": (("budget", 0, "met"), "yes", "met"),
    "an export without bytes": (("exports", 0, "bytes"), None, "bytes"),
    "a history of text": (("training", 0, "history"), "long", "history"),
    "a step of text": (("training", 0, "history", "steps", 0, "step"), "one", "step"),
    "a loss that is not finite": (("training", 0, "history", "steps", 0, "loss"), float("inf"), "finite"),
}


@pytest.mark.parametrize("name", WRONG)
def test_nonsense_is_refused_by_name(name):
    path, wrong, words = WRONG[name]
    value = copy.deepcopy(sample_report())
    holder, key = at(value, *path)
    holder[key] = wrong
    with pytest.raises(ArtifactError, match=words):
        Report.from_json(value)


def test_two_stages_of_one_name_are_refused():
    value = sample_report()
    value["stages"][1]["name"] = "teacher"
    with pytest.raises(ArtifactError, match="'teacher'"):
        Report.from_json(value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 1}', '{"format": NaN}', "[" * 100_000])
def test_damaged_files_are_refused_with_their_name(text, tmp_path):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"report\.json"):
        Report.load(tmp_path / "report.json")
    with pytest.raises(ArtifactError, match="cannot read"):
        Report.load(tmp_path / "absent.json")


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_pareto_against_the_definition(better):
    generator = random.Random(3)
    for _ in range(50):
        points = [(generator.randint(0, 5), generator.randint(0, 5)) for _ in range(7)]
        sign = 1 if better == "higher" else -1
        expected = set()
        for point in points:
            beaten = any(
                other[0] <= point[0] and sign * other[1] >= sign * point[1] and other != point for other in points
            )
            expected |= set() if beaten else {point}
        front = pareto(points, better)
        assert {points[i] for i in front} == expected
        assert len(front) == len(expected), "of equal points one stands on the front"
        assert all(points[a][0] <= points[b][0] for a, b in itertools.pairwise(front))


def test_the_terminal_table_shows_the_numbers_and_the_ratios():
    console = Console(width=180, record=True, file=io.StringIO())
    console.print(stage_table(sample_report(), full=True))
    text = console.export_text()
    for words in ("teacher", "93.84 %", "3.46 MB", "20.1× smaller", "−2.35", "9.81 ms", "30 runs"):
        assert words in text
    assert text.count("quantization-aware") == 1
    narrow = Console(width=100, record=True, file=io.StringIO())
    narrow.print(stage_table(sample_report()))
    text = narrow.export_text()
    assert "Calibration" not in text and "172 kB" in text
    assert max(len(line) for line in text.splitlines()) <= 100
