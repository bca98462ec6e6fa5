"""Reports in a real browser: no request, no message, names for screen readers, contrast."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

import modularml as mm
from modularml.report import write_report
from tests.browser import CHROMIUM, Browser, browser
from tests.report.worlds import classified, folds, trained

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"
)

CONTRASTS = """
(() => {
  const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(c => c / 255).map(
      c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = node => {
    for (let at = node; at; at = at.parentElement) {
      const colour = rgb(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const words = "h1,h2,h3,p,dt,dd,th,td,li,a,figcaption,caption,summary,code,strong,.mark,small";
  const all = [...document.querySelectorAll(words)];
  return all.filter(n => n.innerText && n.innerText.trim()).map(n => {
    const [a, b] = [rgb(getComputedStyle(n).color), behind(n)].map(light).sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), n.tagName + " " + n.innerText.slice(0, 30)];
  }).sort((x, y) => x[0] - y[0]);
})()
"""
HEADINGS = "[...document.querySelectorAll('h1,h2,h3,h4')].map(h => Number(h.tagName[1]))"
DANGLING = """
[...document.querySelectorAll('[href^="#"], use, [clip-path], [aria-labelledby]')].flatMap(n => [
  n.getAttribute("href"), n.getAttribute("xlink:href"),
  (n.getAttribute("clip-path") || "").replace(/url\\((#.*)\\)/, "$1"),
  n.hasAttribute("aria-labelledby") ? "#" + n.getAttribute("aria-labelledby") : ""
]).filter(t => t && !document.getElementById(t.slice(1)))
"""
DOUBLED = """
(() => { const ids = [...document.querySelectorAll("[id]")].map(n => n.id);
  return ids.filter((id, i) => ids.indexOf(id) !== i); })()
"""


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    experiment = trained("Patients", n_epochs=3)
    sources = {
        "experiment": experiment,
        "classes": classified(),
        "folds": folds(experiment),
        "collection": mm.ExperimentCollection([experiment]),
    }
    return {name: write_report(s, folder / f"{name}.html") for name, s in sources.items()}


KINDS = pytest.mark.parametrize("kind", ["experiment", "classes", "folds", "collection"])


@KINDS
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_and_fits(
    kind: str, scheme: str, tab: Browser, pages: dict[str, Path]
) -> None:
    for width in (390, 1280):
        tab.open(pages[kind], width=width, scheme=scheme)
        assert tab.js("document.documentElement.scrollWidth - window.innerWidth") <= 0
        worst = tab.js(CONTRASTS)
        assert len(worst) > 50
        assert worst[0][0] >= 4.5, worst[:3]
    bright = tab.js("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (min(bright) > 200) == (scheme == "light")


@KINDS
def test_nothing_leaves_the_file_and_the_console_is_empty(
    kind: str, tab: Browser, pages: dict[str, Path]
) -> None:
    tab.requests.clear()
    tab.console.clear()
    tab.open(pages[kind])
    assert tab.js("document.scripts.length") == 0
    outside = [url for url in tab.requests if not url.startswith("data:")]
    assert outside == [pages[kind].resolve().as_uri()]
    assert tab.console == []


@KINDS
def test_a_screen_reader_finds_its_way(kind: str, tab: Browser, pages: dict[str, Path]) -> None:
    tab.open(pages[kind])
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    by_role: dict[str, list[str]] = {}
    for node in nodes:
        if not node["ignored"]:
            name = node.get("name", {}).get("value", "")
            by_role.setdefault(node["role"]["value"], []).append(name)
    assert len(by_role["image"]) >= 1
    for role in ("image", "table", "region", "navigation", "link", "heading"):
        assert all(by_role.get(role, ["-"])), role
    assert len(by_role["main"]) == 1
    levels = tab.js(HEADINGS)
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert tab.js(DANGLING) == []
    assert tab.js(DOUBLED) == []


def test_contents_stay_in_view_on_a_wide_screen(tab: Browser, pages: dict[str, Path]) -> None:
    where = "document.querySelector('nav').getBoundingClientRect().top"
    tab.open(pages["experiment"])
    tab.js("document.documentElement.style.scrollBehavior = 'auto'; window.scrollTo(0, 2000)")
    assert tab.js("window.scrollY") == 2000
    assert tab.js(where) == 0
    tab.open(pages["experiment"], width=390)
    tab.js("document.documentElement.style.scrollBehavior = 'auto'; window.scrollTo(0, 2000)")
    assert tab.js(where) < -1000
