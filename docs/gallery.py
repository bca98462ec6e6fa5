"""Settings of the gallery: recipes in ``examples/``, pages in ``gallery/``, not in git."""

import re
from html import escape
from pathlib import Path
from textwrap import indent
from typing import Any

from sphinx_gallery.scrapers import figure_rst

HERE = Path(__file__).resolve().parent
THUMBNAIL = re.compile(r"gallery/(\w+)/images/thumb/sphx_glr_(\w+)_thumb")
ALT = re.compile(r'^# sphinx_gallery_alt = "(.+)"$', re.MULTILINE)
HIDDEN = re.compile(r'(<a class="reference internal" href="[^"]+")(?=><span class="doc">([^<]+)<)')
GROUPS = ("rows", "graphs", "training", "results", "many", "files", "own")

WIDTH = 4.4
"""Inches of a picture, so that its text can be read where the page is 360 pixels wide."""


def last_picture(_block: Any, found: dict[str, Any], conf: dict[str, Any]) -> str:
    """Save the figure or diagram that the last line of a recipe gives, and return its RST."""
    import matplotlib.pyplot as plt

    picture = plt.gcf() if plt.get_fignums() else found["example_globals"]["___"]
    path, alt = Path(next(found["image_path_iterator"])), found["file_conf"]["alt"]
    if not hasattr(picture, "savefig"):
        picture.save(path.with_suffix(".svg"))  # for the thumbnail
        return f"\n.. raw:: html\n\n{indent(_scrolled(picture.to_svg(), alt), '    ')}\n"
    width, height = picture.get_size_inches()
    picture.set_size_inches(WIDTH, height * WIDTH / width)
    twice = path.with_stem(f"{path.stem}_2x")
    picture.savefig(path, dpi=110, metadata={"Software": None})
    picture.savefig(twice, dpi=220, metadata={"Software": None})
    plt.close("all")
    return figure_rst([path], conf["src_dir"], alt, srcsetpaths=[{0: path, 2.0: twice}])


def _scrolled(svg: str, alt: str) -> str:
    """Return a drawing that is scrolled, not shrunk, where the page is narrow."""
    own = f'aria-label="{escape(alt)}" style="max-width: none"'
    svg = re.sub('aria-label="[^"]*"', own, svg, count=1)
    style = "overflow-x: auto; background: #fff; border-radius: 0.25rem"
    return f'<div style="{style}" tabindex="0">{svg}</div>'


def fresh_context(_conf: dict[str, Any], _name: Any) -> None:
    """Make the nodes of one recipe unknown to the next, and keep torch on one thread."""
    import torch

    import modularml as mml

    torch.set_num_threads(1)
    mml.ExperimentContext().make_active()


def describe_thumbnails(_app: Any, doctree: Any) -> None:
    """Give each picture of a list of recipes the alt text of the recipe."""
    from docutils import nodes

    for image in doctree.findall(nodes.image):
        if place := THUMBNAIL.search(image["uri"]):
            code = (HERE / "examples" / place[1] / f"{place[2]}.py").read_text("utf-8")
            image["alt"] = ALT.search(code)[1]


def name_links(_app: Any, page: str, _template: str, context: dict[str, Any], _tree: Any) -> None:
    """Say where links of thumbnails lead, whose text is hidden, and drop ids that come again."""
    if page.startswith("gallery/") and page.endswith("index"):
        body = context["body"].replace(" id='sg-tag-list'", "")
        context["body"] = HIDDEN.sub(r'\1 aria-label="\2"', body)


def drop_stale_pages(_app: Any) -> None:
    """Remove what recipes that are gone have left in ``gallery/``."""
    for page in (HERE / "gallery").glob("*/plot_*"):
        recipe = f"{page.name.partition('.')[0]}.py"
        if not (HERE / "examples" / page.parent.name / recipe).exists():
            page.unlink()


SETTINGS = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "subsection_order": [f"examples/{group}" for group in GROUPS],
    "within_subsection_order": "FileNameSortKey",
    "doc_module": ("modularml",),
    "image_scrapers": ("gallery.last_picture",),
    "reset_modules": ("matplotlib", "gallery.fresh_context"),
    "capture_repr": (),
    "notebook_extensions": set(),  # their pages would have the names of the recipes'
    "remove_config_comments": True,
    "min_reported_time": float("inf"),
    "write_computation_times": False,
    "show_signature": False,
    "download_all_examples": False,
}
