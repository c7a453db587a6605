"""The catalogue, the commands over it, and the table and page made of the ledger."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from limbeck.cli import app
from limbeck.errors import ArtifactError, UsageError
from limbeck.experiments.catalogue import catalogue, entry, families, listing, paper_files, row_of
from limbeck.experiments.table import markdown, page_of
from limbeck.experiments.units import load_paper
from limbeck.files import write_json


def made(name="nkd", low=0.1, verdict="holds", text="NKD beats <b>KD</b>."):
    side = {"about": "", "settings": {}, "tuning": {"settings": 1}}
    seeds = {str(s): {"metrics": {"accuracy": 0.8 + 0.01 * s}, "costs": {}, "seconds": 1.0} for s in range(3)}
    row = {"metric": "accuracy", "method": "method", "against": "baseline", "better": "higher", "margin": 0.0}
    row |= {"decisive": True, "text": "", "verdict": verdict, "differences": [0.1, 0.2, 0.3], "mean": 0.2}
    row |= {"deviation": 0.1, "low": low, "high": 0.3, "level": 0.95}
    return {
        "format": 1,
        "id": 2,
        "name": name,
        "title": "NKD",
        "claim": text,
        "verdict": verdict,
        "comparisons": [row],
        "arms": {a: {**side, "seeds": seeds} for a in ("method", "baseline", "control")},
        "plan": {"looks": [3], "level": 0.95, "seeds": [0, 1, 2]},
        "seconds": {"units": 60.0, "shared": 120.0, "saved_by_store": 600.0, "wall": 70.0},
    }


def test_catalogue_is_whole():
    rows = catalogue()
    assert [row["id"] for row in rows] == list(range(1, 315))
    assert len({row["name"] for row in rows}) == 314
    assert all(row["title"] and row["claim"].endswith(".") and row["name"].isidentifier() for row in rows)
    assert len(families()) == 26


def test_every_file_has_its_row():
    known = {row["name"]: row["id"] for row in catalogue()}
    for name in paper_files():
        paper = load_paper(name)
        assert known.get(name) == paper.id, name
        assert paper.title == row_of(name)["title"], name


def test_every_ledger_entry_belongs_to_a_paper():
    for row in catalogue():
        found = entry(row["name"])
        if found:
            assert row["name"] in paper_files() and found["id"] == row["id"]
            assert set(load_paper(row["name"]).arms) == set(found["arms"])


def test_listing_imports_neither_torch_nor_papers():
    code = (
        "import sys; from limbeck.cli import app; from typer.testing import CliRunner;"
        "r = CliRunner().invoke(app, ['papers', 'list', '--json']); assert r.exit_code == 0, r.output;"
        "import json; assert len(json.loads(r.stdout)) == 314;"
        "assert 'torch' not in sys.modules and not [m for m in sys.modules if m.startswith('limbeck.papers.')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def run(*arguments):
    return CliRunner().invoke(app, ["papers", *arguments])


def test_list_shows_verdicts(tmp_path):
    write_json(tmp_path / "nkd.json", made())
    rows = json.loads(run("list", "--json", "--ledger", str(tmp_path)).stdout)
    assert set(rows[0]) == {"id", "name", "title", "family", "verdict"}
    assert next(row for row in rows if row["id"] == 2)["verdict"] == "holds"
    assert {row["family"] for row in listing("logit_kd")} == {"logit_kd"}
    assert "314 systems" in run("list").stdout.replace("\n", " ")


def test_mistakes_have_one_clear_error(tmp_path):
    with pytest.raises(UsageError, match=r"family='logit'.*logit_kd"):
        listing("logit")
    with pytest.raises(UsageError, match="Did you mean 'nkd'"):
        row_of("nkdd")
    assert row_of("2")["name"] == "nkd"
    (tmp_path / "nkd.json").write_text("{}")
    with pytest.raises(ArtifactError, match="not a ledger entry"):
        entry("nkd", tmp_path)
    absent = next(row["name"] for row in catalogue() if row["name"] not in paper_files())
    assert isinstance(run("run", absent).exception, UsageError)


def test_show_of_what_is_not_here_yet():
    absent = next(row for row in catalogue() if row["name"] not in paper_files())
    shown = run("show", absent["name"])
    assert shown.exit_code == 0 and "Not here yet" in shown.stdout


def test_table_and_page(tmp_path):
    write_json(tmp_path / "nkd.json", made())
    words = markdown(tmp_path)
    assert "| 2 | [nkd](../limbeck/papers/nkd.py) | **holds** |" in words and "+0.2 (+0.1 to +0.3)" in words
    assert "took 1 minutes of one thread" in words and "plus 2 for" in words and "saved 10" in words
    page = page_of(tmp_path)
    assert page.count("<tr ") == 314 and "<b>KD</b>" not in page and "&lt;b&gt;KD" in page
    assert page.count('class="mark seed"') == 3 and len(page) < 1_500_000
    out = run("table", "--out", str(tmp_path / "papers.md"), "--ledger", str(tmp_path), "--json")
    assert out.exit_code == 0 and (tmp_path / "papers.html").read_text() == page


def test_page_sorts_and_filters_in_a_browser(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    import shutil

    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no Chromium on this machine")
    write_json(tmp_path / "nkd.json", made())
    write_json(tmp_path / "minilm.json", {**made("minilm", -0.1, "inconclusive"), "id": 188})
    path = tmp_path / "papers.html"
    path.write_text(page_of(tmp_path))
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        visible = "() => [...document.querySelectorAll('table.papers tbody tr')].filter((r) => !r.hidden).map((r) => r.cells[0].textContent)"
        page.select_option("#verdict", "holds")
        assert page.evaluate(visible) == ["2"] and page.inner_text("#count") == "1 shown"
        page.select_option("#verdict", "")
        page.fill("#find", "minilm")
        assert "188" in page.evaluate(visible)
        page.fill("#find", "")
        page.click("thead th:nth-child(4) button")
        assert page.evaluate(visible)[:2] == ["2", "188"]
        page.click("thead th:nth-child(1) button")
        page.click("thead th:nth-child(1) button")
        assert page.evaluate(visible)[0] == "314"
        assert asked == [path.as_uri()]
        browser.close()
