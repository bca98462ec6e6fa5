"""Sphinx configuration. Everything is local: the pages need no network to build or to read."""

import json
import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))

import apipages  # noqa: E402
import gallery  # noqa: E402
import layers_figure  # noqa: E402
import pages  # noqa: E402

import modularml  # noqa: E402

project = "modularml"
author = "The modularml developers"
copyright = author  # noqa: A001
release = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]

extensions = [
    "myst_nb",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "usages",
]
exclude_patterns = ["_build", "_templates", "examples", "explanation/speed_table.md"]
sphinx_gallery_conf = gallery.SETTINGS
templates_path = ["_templates"]

# --- notebooks: the tests run them, the docs show the outputs that are stored in them
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # these would come from a network
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# --- reference
default_role = "py:obj"
add_module_names = False
autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
maximum_signature_line_length = 72
toc_object_entries_show_parents = "hide"
autodoc_typehints = "signature"
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
suppress_warnings = [
    "ref.python",  # SequentialMLP of torch and of tensorflow share a name
    "misc.highlighting_failure",  # cells of notebooks that write YAML
]

# --- looks
html_theme = "pydata_sphinx_theme"
html_title = "modularml"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
copybutton_selector = ", ".join(
    f"div.highlight-{language} pre"
    for language in ("python", "Python", "ipython3", "py", "default", "console", "yaml", "bash")
)
copybutton_exclude = ".linenos, .gp, .go"  # prompts, and what a command prints
html_context = {"default_mode": "auto"}
html_theme_options = {
    "footer_start": ["copyright"],
    "footer_end": [],
    "header_links_before_dropdown": 8,
    "navbar_end": ["version-switcher", "theme-switcher"],
    "navbar_persistent": ["search-button"],
    "navigation_depth": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
    "switcher": {"json_url": "_static/versions.json", "version_match": release},
}
html_sidebars = {"changelog": [], "index": []}

# A page that is read from a disk may fetch no file, so the list of versions is in the page; its
# addresses are relative to the root of the site.
VERSIONS = json.loads((HERE / "_static" / "versions.json").read_text("utf-8"))
SWITCHER = f"""
{{
  const root = new URL(document.documentElement.dataset.content_root, location.href);
  const rows = {json.dumps(VERSIONS)}.map(row => ({{...row, url: new URL(row.url, root).href}}));
  DOCUMENTATION_OPTIONS.theme_switcher_json_url =
    "data:application/json," + encodeURIComponent(JSON.stringify(rows));
}}
"""

# --- external links, looked at by ``nox -s linkcheck`` alone
linkcheck_anchors = False
linkcheck_timeout = 20


EXTRAS_LINE = re.compile(
    r"""^ *"You need .+`pip install (?:\.|'\.\[[\w,]+\]')`.*?\.(?=(?:\\n)?",?$)""", re.MULTILINE
)
"""The line of a notebook, as JSON, that says which extras it needs."""


def copy_notebooks() -> None:
    """Make pages of ``notebooks/``; they live there because people run them there."""
    folders = {
        path.name: "tutorials" if "_tutorial_" in path.name else "howto"
        for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
    }
    for folder in ("howto", "tutorials"):
        for old in (HERE / folder).glob("*.ipynb"):
            old.unlink()
    for name, folder in folders.items():

        def link(match: re.Match[str], here: str = folder) -> str:
            there = folders.get(match[1], here)
            return match[0] if there == here else f"](../{there}/{match[1]}"

        source, page = ROOT / "notebooks" / name, HERE / folder / name
        text = source.read_text("utf-8").replace("](../docs/", "](../")
        text = re.sub(r"\]\((\w+\.ipynb)", link, text)
        download = f"{{download}}`Download this page as a notebook <../../notebooks/{name}>`."
        text, found = EXTRAS_LINE.subn(lambda match, to=download: f"{match[0]} {to}", text, 1)
        if not found:
            raise ValueError(f"{name}: its first cell must say which extras it needs")
        page.write_text(text, "utf-8")
        shutil.copystat(source, page)  # Sphinx reads again what is newer


def skip_foreign(_app: Any, _kind: str, _name: str, obj: Any, skip: bool, _options: Any) -> bool:
    """Leave out what a class inherits from a framework: it has docs of its own."""
    found = getattr(getattr(obj, "fget", None) or obj, "__module__", None) or "modularml"
    return skip or not found.startswith("modularml")


def escape_stars(
    _app: Any, _kind: str, _name: str, _obj: Any, _options: Any, lines: list[str]
) -> None:
    """Keep the star of a shape such as ``(n, *shape)``, which would start italics."""
    lines[:] = [re.sub(r"(?<![*`\\\w])\*(?=[a-z])", r"\\*", line) for line in lines]


def setup(app: Any) -> None:
    app.connect("autodoc-skip-member", skip_foreign)
    app.connect("builder-inited", gallery.drop_stale_pages, priority=100)
    app.connect("doctree-read", gallery.describe_thumbnails, priority=400)
    app.connect("html-page-context", gallery.name_links)
    app.connect("autodoc-process-docstring", escape_stars, priority=100)
    app.connect("source-read", pages.read_source)
    app.connect("doctree-read", pages.describe_images)
    app.connect("html-page-context", pages.mend_back_links)
    app.add_js_file(None, body=SWITCHER, priority=900)  # after the theme's own


for phase in (modularml.EvalPhase, modularml.FitPhase, modularml.TrainPhase):
    # Sphinx looks for defaults in the source, which has these in the constructors
    del phase.from_split.__func__.__signature__
copy_notebooks()
pages.write_thumbnails(HERE / "_thumbnails")
apipages.write(HERE / "reference" / "api")
layers_figure.write(ROOT / "pyproject.toml", HERE / "images" / "layers.svg")
