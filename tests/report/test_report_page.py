"""The page as text: the numbers in it are the numbers of the report, and everything foreign is escaped."""

import copy
import html
import re

import pytest
import yaml
from sample_report import sample_report

from limbeck.errors import ArtifactError
from limbeck.report import Report, page, write_page
from limbeck.report.headline import achievement, comparable
from limbeck.report.layers import layers, likeness, pair_of
from limbeck.report.words import change, quantity, shown


@pytest.fixture(scope="module")
def report():
    return Report.from_json(sample_report())


@pytest.fixture(scope="module")
def made():
    return page(sample_report())


def rows_of(made):
    table = re.search(r'<table class="stages".*?</table>', made, re.S)[0]
    return re.findall(r"<tr [^>]*data-stage.*?</tr>", table, re.S)


def test_every_number_of_every_stage_is_in_its_row(report, made):
    rows = rows_of(made)
    assert len(rows) == len(report.stages)
    for stage, row in zip(report.stages, rows):
        cells = dict(re.findall(r'<td data-sort="([^"]*)" data-name="([^"]*)"', row))
        cells = {name: float(value) for value, name in cells.items()}
        assert cells == {name: measurement.value for name, measurement in stage.measurements.items()}
        for name, measurement in stage.measurements.items():
            assert shown(measurement) in row
            first = report.stages[0].measurements.get(name)
            if stage is not report.stages[0] and first is not None:
                assert change(first, measurement) in row


def test_headline_compares_like_with_like(report):
    assert comparable(report, "bytes").name == "teacher"
    assert comparable(report, "latency").name == "ONNX float32", "not torch: a runtime is no achievement of the model"
    assert achievement(report) == (
        "ONNX int8: 20.1× smaller than teacher, 1.65× faster than ONNX float32, at 91.49 % accuracy (−2.35 points)."
    )


def test_a_single_stage_has_a_page():
    value = sample_report()
    value["stages"], value["budget"] = value["stages"][:1], []
    made = page(value)
    assert len(rows_of(made)) == 1 and "teacher: 93.84 % accuracy." in made


def test_an_empty_report_has_a_page():
    value = {
        "format": 1,
        "name": "bare",
        "task": {"name": "t", "metric": "accuracy", "better": "higher", "dataset": ""},
        "stages": [{"name": "only", "step": "", "form": "", "measurements": {}}],
    }
    made = page(value)
    assert "only" in made and 'id="layers"' not in made and 'id="training"' not in made


def test_points_say_their_numbers(report, made):
    found = re.findall(r'<g class="point[^"]*"[^>]*data-tip="([^"]*)" data-stage="([^"]*)"', made)
    for stage in report.stages:
        tips = [html.unescape(tip) for tip, name in found if html.unescape(name) == stage.name]
        charts = ("bytes" in stage.measurements) + ("latency" in stage.measurements)
        assert len(tips) == 2 * charts, "each chart is drawn for desk and for phone"
        for tip in tips:
            assert shown(stage.measurements["accuracy"]) in tip


def test_points_stand_where_their_numbers_put_them(report, made):
    svg = re.search(r'<svg class="chart wide".*?</svg>', made[made.index('id="tradeoffs"') :], re.S)[0]
    places = {}
    for name, body in re.findall(r'data-stage="([^"]*)">(.*?)</g>', svg, re.S):
        x, y = re.search(r'cx="([\d.]+)" cy="([\d.]+)"', body).groups()
        places[name] = float(x), float(y)
    by_size = sorted(report.stages, key=lambda stage: stage.value("bytes"))
    assert [places[s.name][0] for s in by_size] == sorted(places[s.name][0] for s in by_size)
    by_accuracy = sorted(report.stages, key=lambda stage: stage.value("accuracy"))
    heights = [places[s.name][1] for s in by_accuracy]
    assert heights == sorted(heights, reverse=True), "better is higher up"


def test_layers_are_compared_with_the_first_stage_of_the_same_architecture(report):
    before, after = pair_of(report)
    assert (before.name, after.name) == ("student distilled", "ONNX int8")
    assert likeness(report.stages[0], after) < 0.5 <= likeness(before, after)
    made = layers(report)
    rows = re.findall(r"<tr data-path=.*?</tr>", made, re.S)
    assert len(rows) == len(after.layers)
    for layer in after.layers:
        row = next(row for row in rows if f'data-path="{layer["path"]}"' in row)
        assert quantity(layer["bytes"], "bytes", "bytes") in row
        assert f"{layer['parameters']:,}" in row and f"{layer['bits']}" in row


def test_bits_add_up_in_the_composition(report):
    text = re.search(r'<ol class="composition">.*</ol>', layers(report), re.S)[0]
    final = report.stages[-1].layers
    for bits in (8, 32):
        total = sum(layer["bytes"] for layer in final if layer["bits"] == bits)
        assert f"{bits} bits: {quantity(total, 'bytes', 'bytes')}" in text


def test_the_recipe_is_yaml_that_reads_back(report, made):
    text = html.unescape(re.search(r'<code id="recipe-text">(.*?)</code>', made, re.S)[1])
    assert yaml.safe_load(text) == report.recipe


def test_budget_exports_and_environment(report, made):
    section = re.search(r'<section id="budget".*?</section>', made, re.S)[0]
    assert (
        section.count(">met<") == 2 and section.count(">not met<") == 1 and "2.35 %" in section and "1.00 %" in section
    )
    section = re.search(r'<section id="exports".*?</section>', made, re.S)[0]
    assert "exports/model-int8.onnx" in section and "560 kB" in section
    section = re.search(r'<section id="environment".*?</section>', made, re.S)[0]
    assert "Example Processor 4000" in section and "25.0 GB" in section


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;"


def poisoned(value):
    """Every text of a report that a user or a file can choose, made hostile."""
    value = copy.deepcopy(value)
    value["name"] = value["created"] = HOSTILE
    value["task"] |= {"name": HOSTILE, "dataset": HOSTILE}
    value["environment"] |= {"cpu": HOSTILE, HOSTILE: HOSTILE}
    value["recipe"] |= {HOSTILE: [HOSTILE]}
    for number, stage in enumerate(value["stages"]):
        stage |= {"name": f"{number}{HOSTILE}", "form": HOSTILE, "notes": [HOSTILE]}
        for measurement in stage["measurements"].values():
            measurement |= {"where": HOSTILE, "settings": {HOSTILE: HOSTILE}}
        odd = {"name": HOSTILE, "value": 1.0, "unit": HOSTILE, "better": "lower", "runs": 2, "low": 1.0, "high": 1.0}
        stage["measurements"][HOSTILE] = odd
        for layer in stage["layers"]:
            layer |= {"path": layer["path"] + HOSTILE, "kind": HOSTILE}
    for entry in value["training"]:
        entry["step"] = HOSTILE
        for row in entry["history"]["steps"]:
            row["parts"] = {HOSTILE: 1.0, "other": 2.0}
        for row in entry["history"]["evaluations"]:
            row["split"] = HOSTILE
    for entry in value["budget"]:
        entry |= {"limit": HOSTILE, "stage": HOSTILE}
    for entry in value["exports"]:
        entry |= {"name": HOSTILE, "file": HOSTILE}
    return value


def test_nothing_of_the_report_becomes_markup():
    made = page(poisoned(sample_report()))
    assert made.count("<script>") == 1 and "<img" not in made and "onerror=alert(2)>" not in made
    assert html.escape(HOSTILE, quote=True) in made


def test_it_is_small_and_fetches_nothing(tmp_path):
    value = sample_report()
    value["training"] *= 4
    value["stages"][-1]["layers"] = [
        {"path": f"encoder.layer.{i}.attention", "kind": "Linear", "parameters": 9, "bytes": 9, "bits": 8}
        for i in range(400)
    ]
    write_page(value, tmp_path / "page.html")
    made = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(made.encode()) < 1_500_000
    assert "default-src 'none'" in html.unescape(made)
    assert not re.search(r"""(src|href)=["'](?!#)""", made) and "url(" not in made and "@import" not in made


def test_nonsense_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(ArtifactError):
        write_page({"format": 1}, tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
