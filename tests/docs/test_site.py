"""The built pages: links, sizes and alt texts, and how a browser and axe-core see them.

`make docs-check` builds them and names their folder in ``MML_DOCS``; without it these tests are
skipped, as the pages of an older build would tell nothing.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest

from tests.browser import CHROMIUM, Browser, browser

SITE = Path(os.environ.get("MML_DOCS", "")).resolve()
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("MML_DOCS" not in os.environ, reason="run by `make docs-check`"),
]
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"
)

MAX_BYTES = 1_500_000
WIDTHS = (360, 768, 1400)
SECTIONS = (
    *("start", "tutorials", "howto", "gallery", "explanation", "reference", "troubleshooting"),
    "changelog",
)
PAGES = (
    "index.html",
    "start/index.html",
    "tutorials/index.html",
    "tutorials/26_tutorial_cells.html",
    "howto/index.html",
    "howto/03_splits_without_leaks.html",
    "howto/07_nodes_and_graphs.html",
    "howto/17_sweeps.html",
    "howto/27_looking_at_results.html",
    "reference/index.html",
    "reference/api/generated/modularml.FeatureSet.html",
    "explanation/index.html",
    "explanation/architecture.html",
    "troubleshooting.html",
    "changelog.html",
    "search.html",
)
# not definition-list and dlitem: Sphinx writes signatures of several lines as a <dl> without <dt>
RULES = [
    *("color-contrast", "image-alt", "svg-img-alt", "link-name", "button-name", "label"),
    *("select-name", "input-image-alt", "heading-order", "page-has-heading-one", "empty-heading"),
    *("document-title", "html-has-lang", "duplicate-id", "list", "listitem", "tabindex"),
    *("aria-allowed-attr", "aria-valid-attr", "aria-valid-attr-value"),
    *("aria-required-children", "landmark-one-main", "bypass", "th-has-data-cells"),
]
SCROLLED = """
[...document.querySelectorAll('main *')].filter(n => {
  const box = n.getBoundingClientRect();
  if (!box.width || box.right <= window.innerWidth + 1) return false;
  for (let at = n.parentElement; at; at = at.parentElement)
    if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(at).overflowX)) return false;
  return true;
}).slice(0, 3).map(n => n.outerHTML.slice(0, 120))
"""


class Page(HTMLParser):
    """What other pages may point to, what this one points to, and pictures without a text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.mute: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {key: value or "" for key, value in attrs}
        self.ids |= {named[key] for key in ("id", "name") if key in named}
        if tag == "a" and "href" in named:
            self.links.append(named["href"])
        if tag in ("script", "img", "iframe", "source") and "src" in named:
            self.loaded.append(named["src"])
        if tag == "link" and named.get("rel") not in ("index", "search", "next", "prev"):
            self.loaded.append(named["href"])
        if tag == "img" and not named.get("alt", "").strip():
            self.mute.append(named.get("src", ""))


@cache
def parsed(path: Path) -> Page:
    return Page(path)


@cache
def every_page() -> list[Path]:
    return sorted(page for page in SITE.rglob("*.html") if SITE / "_static" not in page.parents)


# ---------------------------------------------------------------------------------- files


def test_each_section_is_built_and_in_the_navigation() -> None:
    links = parsed(SITE / "index.html").links
    for section in SECTIONS:
        page = section if section in ("changelog", "troubleshooting") else f"{section}/index"
        assert f"{page}.html" in links, f"no link to {page}"


def test_each_internal_link_has_a_target() -> None:
    broken = []
    for page in every_page():
        for href in {*parsed(page).links, *parsed(page).loaded}:
            url, anchor = urldefrag(href)
            if urlparse(url).scheme:
                continue
            target = (page.parent / unquote(url.split("?")[0])).resolve() if url else page
            anchors = parsed(target).ids if target.suffix == ".html" and target.is_file() else ()
            if not target.is_file() or (anchor and anchors and unquote(anchor) not in anchors):
                broken.append(f"{page.relative_to(SITE)} -> {href}")
    assert not broken, "\n".join(broken[:40])


def test_nothing_is_loaded_from_elsewhere() -> None:
    loaded = {url for page in every_page() for url in parsed(page).loaded}
    assert len(loaded) > 20
    assert [url for url in loaded if urlparse(url).scheme not in ("", "data")] == []


def test_each_notebook_can_be_downloaded() -> None:
    for source in sorted(NOTEBOOKS.glob("*.ipynb")):
        folder = "tutorials" if "_tutorial_" in source.name else "howto"
        page = SITE / folder / f"{source.stem}.html"
        links = [link for link in parsed(page).links if link.endswith(f"/{source.name}")]
        (found,) = {(page.parent / unquote(link)).resolve() for link in links}
        assert found.read_bytes() == source.read_bytes()


def test_each_picture_has_an_alt_text() -> None:
    mute = [f"{p.relative_to(SITE)}: {src}" for p in every_page() for src in parsed(p).mute]
    assert not mute, "\n".join(mute[:40])


def test_no_page_is_large() -> None:
    sizes = {page.relative_to(SITE).as_posix(): page.stat().st_size for page in every_page()}
    assert {page: size for page, size in sizes.items() if size > MAX_BYTES} == {}


# -------------------------------------------------------------------------------- browser


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def axe() -> str:
    spec = importlib.util.find_spec("axe_core_python")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("axe.min.js").read_text("utf-8")


def opened(tab: Browser, page: str, width: int, scheme: str = "light") -> None:
    tab.console.clear()
    tab.requests.clear()
    tab.open(SITE / page, width=width, scheme=scheme)
    tab.js("new Promise(done => setTimeout(done, 100))")


def gallery() -> list[str]:
    pages = sorted((SITE / "gallery").rglob("plot_*.html"))[:2]
    return ["gallery/index.html", *(page.relative_to(SITE).as_posix() for page in pages)]


@needs_browser
@pytest.mark.parametrize("page", [*PAGES, *gallery()])
def test_a_page_fits_and_stays_at_home(page: str, tab: Browser) -> None:
    for width in WIDTHS:
        opened(tab, page, width)
        root = "document.documentElement"
        assert tab.js(f"{root}.scrollWidth - {root}.clientWidth") <= 0, width
        assert tab.js(SCROLLED) == [], width
        assert tab.complaints() == []
        away = [url for url in tab.requests if not url.startswith(("file:", "data:"))]
        assert away == []


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", [*PAGES, *gallery()])
def test_a_page_is_accessible(page: str, scheme: str, tab: Browser, axe: str) -> None:
    opened(tab, page, 1400, scheme)
    assert tab.js("document.documentElement.dataset.theme") == scheme
    tab.js(axe + ";0")
    rules = f"{{runOnly: {{type: 'rule', values: {RULES!r}}}}}"
    found = tab.js(
        f"axe.run(document, {rules}).then(r => r.violations.map(v => v.id + ': ' "
        "+ v.nodes.slice(0, 3).map(n => n.html.slice(0, 160)).join(' | ')))"
    )
    assert found == [], "\n".join(found)


@needs_browser
@pytest.mark.parametrize("words", ["missing values", "sweep", "early stopping", "GPU"])
def test_the_search_finds(words: str, tab: Browser) -> None:
    tab.open(SITE / "search.html")
    address = (SITE / "search.html").as_uri() + "?q=" + words.replace(" ", "+")
    tab.call("Page.navigate", url=address)
    count = "document.querySelectorAll('#search-results li').length"
    titles = "[...document.querySelectorAll('#search-results li a')].map(n => n.innerText)"
    for _ in range(50):
        if tab.js(count) >= 3:
            break
        tab.js("new Promise(done => setTimeout(done, 100))")
    assert tab.js(count) >= 3, tab.js(titles)
    tab.call("Page.navigate", url="about:blank")  # it still fetches pages, to quote them
    tab.js("new Promise(done => setTimeout(done, 500))")


@needs_browser
def test_the_list_of_versions_works_from_a_disk(tab: Browser) -> None:
    opened(tab, "howto/index.html", 1400)
    links = "[...document.querySelectorAll('.version-switcher__menu a')].map(a => a.href)"
    for _ in range(50):
        if tab.js(links):
            break
        tab.js("new Promise(done => setTimeout(done, 100))")
    assert tab.js(links)[0].startswith(SITE.as_uri())
    assert tab.complaints() == []
