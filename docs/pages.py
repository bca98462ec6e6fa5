"""Pages made from other files: notebooks with thumbnails, guides as cards, the changelog."""

import base64
import html
import io
import json
import re
import shutil
from itertools import groupby
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
FRAGMENTS = ROOT / "changelog.d"
KINDS = {"added": "Added", "changed": "Changed", "fixed": "Fixed", "removed": "Removed"}
GUIDE = re.compile(
    r"^\[(?P<title>[^]]+)\]\((?P<file>[\w.]+)\.ipynb\)\n: (?P<text>.+)$", re.MULTILINE
)
IMAGES = {"image/png": "png", "image/svg+xml": "svg"}
WIDTH = 480
"""Pixels of a thumbnail."""

TEXT = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 320 180">'
    '<rect width="320" height="180" fill="#f3f4f5"/>'
    '<text font-family="DejaVu Sans Mono,monospace" font-size="12" '
    'fill="#14181e" xml:space="preserve">'
    "{lines}</text></svg>"
)


# ------------------------------------------------------------------------------ thumbnails


def write_thumbnails(folder: Path) -> None:
    """Write the first picture that each notebook stores, or else its first lines of output."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        kind, picture = _thumbnail(_outputs(notebook))
        (folder / f"{notebook.stem}.{kind}").write_bytes(picture)


def _outputs(notebook: Path) -> list[dict[str, Any]]:
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    return [output for cell in cells for output in cell.get("outputs", [])]


def _thumbnail(outputs: list[dict[str, Any]]) -> tuple[str, bytes]:
    for output in outputs:
        for mime, kind in IMAGES.items():
            if stored := "".join(output.get("data", {}).get(mime, "")):
                return kind, _small(stored) if kind == "png" else stored.encode()
    lines = [line[:42] for output in outputs for line in _text(output).splitlines() if line.strip()]
    rows = "".join(
        f'<tspan x="12" y="{24 + 19 * i}">{html.escape(line)}</tspan>'
        for i, line in enumerate(lines[:8])
    )
    return "svg", TEXT.format(lines=rows).encode()


def _small(stored: str) -> bytes:
    from PIL import Image  # comes with matplotlib  # noqa: PLC0415

    picture = Image.open(io.BytesIO(base64.b64decode(stored))).convert("RGB")
    picture.thumbnail((WIDTH, WIDTH))
    out = io.BytesIO()
    picture.quantize(64).save(out, "PNG", optimize=True)
    return out.getvalue()


def _text(output: dict[str, Any]) -> str:
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", ""))


# --------------------------------------------------------------------------- source of pages


def read_source(app: Any, docname: str, source: list[str]) -> None:
    """Replace, in the source of a page, what is made from other files."""
    if docname == "howto/index":
        source[0] = cards(source[0], Path(app.srcdir) / "_thumbnails")
    if docname == "changelog":
        source[0] += unreleased()


def cards(text: str, thumbnails: Path) -> str:
    """Turn each list of guides into a grid of cards and a part of the navigation."""
    parts = re.split(r"^(## .+\n)", text, flags=re.MULTILINE)
    pairs = zip(["", *parts[1::2]], parts[::2], strict=True)
    return "".join(_section(*pair, thumbnails) for pair in pairs)


def _section(heading: str, body: str, thumbnails: Path) -> str:
    guides = list(GUIDE.finditer(body))
    if not guides:
        return heading + body
    grid = "\n".join(_card(guide, thumbnails) for guide in guides)
    files = "\n".join(guide["file"] for guide in guides)
    caption = heading.removeprefix("## ").strip()
    toc = f":::{{toctree}}\n:hidden:\n:caption: {caption}\n\n{files}\n:::\n"
    before = body[: guides[0].start()]
    return f"{heading}{before}\n::::{{grid}} 1 2 2 3\n:gutter: 3\n\n{grid}\n::::\n\n{toc}\n"


def _card(guide: re.Match[str], thumbnails: Path) -> str:
    picture = next(thumbnails.glob(f"{guide['file']}.*"))
    options = [
        f":link: {guide['file']}",
        ":link-type: doc",
        f":img-top: /_thumbnails/{picture.name}",
        f":img-alt: First output of the guide {guide['title']}",
        ":class-card: guide",
    ]
    return "\n".join(
        [f":::{{grid-item-card}} {guide['title']}", *options, "", guide["text"], ":::"]
    )


def unreleased() -> str:
    """Return the fragments of the changelog as a section of it."""
    paths = sorted(FRAGMENTS.glob("*.*.md"), key=lambda path: (path.suffixes[-2], path.name))
    lines = ["\n\n## Not released yet\n"]
    for suffix, group in groupby(paths, key=lambda path: path.suffixes[-2]):
        lines.append(f"\n### {KINDS[suffix[1:]]}\n")
        lines += ["- " + " ".join(path.read_text("utf-8").split()) + "\n" for path in group]
    return "\n".join(lines)


# --------------------------------------------------------------------------------- alt texts


def describe_images(_app: Any, doctree: Any) -> None:
    """Give each picture of a notebook an alt text: its section, and the call that drew it."""
    from docutils import nodes  # noqa: PLC0415

    for image in doctree.findall(nodes.image):
        if not image.get("alt"):
            image["alt"] = _described(image, nodes)


def _described(image: Any, nodes: Any) -> str:
    above, title, code = image.parent, "", ""
    while above is not None and not title:
        if "cell" in above.get("classes", []):
            blocks = [block.astext() for block in above.findall(nodes.literal_block)]
            code = blocks[0] if blocks else ""
        if isinstance(above, nodes.section):
            title = above.next_node(nodes.title).astext()
        above = above.parent
    calls = re.findall(r"(?m)^(?:\w+ = )?([\w.]*(?:plot|visualize|display|show)\w*\(.*)", code)
    return f"{title}: figure of {calls[-1][:100]}" if calls else f"{title}: figure"


# ------------------------------------------------------------------------------ source pages


def mend_back_links(app: Any, page: str, _template: str, context: dict[str, Any], _: Any) -> None:
    """Lead from source back to each name's own page; viewcode knows one package a module."""
    if not page.startswith("_modules/"):
        return
    known = app.env.domaindata["py"]["objects"]

    def mended(match: re.Match[str]) -> str:
        package, parts = match[2].rpartition(".")[0], match[3].split(".")
        names = [f"{package}.{'.'.join(parts[at:])}" for at in range(len(parts))]
        right = next((name for name in [match[3], *names] if name in known), match[3])
        return f"{match[1]}{match[2]}.html#{right}"

    pattern = r'(class="viewcode-back" href="[^"#]*?)([\w.]+)\.html#([\w.]+)'
    context["body"] = re.sub(pattern, mended, context["body"])
