"""What every page of Limbeck has around its content: style, script, the theme switch, and a ban on all requests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from limbeck.report.svg import element, text

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def document(title: str, main: str, links: Iterable[str] = (), more: Iterable[Path] = ()) -> str:
    """A whole page that needs nothing but itself.

    title: plain text. main: the content as HTML. links: of the bar on top. more: further style sheets and scripts, by their suffix.
    """
    files = [*(Path(__file__).with_name(name) for name in ("page.css", "page.js")), *more]
    style, script = (
        "".join(path.read_text(encoding="utf-8") for path in files if path.suffix == suffix)
        for suffix in (".css", ".js")
    )
    head = (
        '<meta charset="utf-8">'
        + element("meta", http_equiv="Content-Security-Policy", content=POLICY)
        + '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        + element("title", text(title))
        + f"<style>{style}</style>"
    )
    toggle = element("button", "Theme", type="button", id="theme", aria_label="Switch between light and dark")
    links = list(links)
    sections = element("nav", *links, aria_label="Sections") if links else element("nav", "")
    bar = element("div", sections, toggle, class_="bar-top")
    tip = '<div id="tip" role="tooltip" hidden></div>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{bar}{main}{tip}<script>{script}</script></body></html>\n'
