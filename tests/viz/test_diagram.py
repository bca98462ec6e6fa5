"""Diagrams: geometry held on random graphs, writing held against what was put in."""

import os
import re
import subprocess
import sys
from itertools import combinations, pairwise
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modularml.errors import (
    ConfigError,
    GraphError,
    MissingDependencyError,
    ModularMLError,
    UnknownNameError,
)
from modularml.viz import Diagram, DiagramEdge, DiagramNode
from modularml.viz.layout import Link, Rect, lay_out
from modularml.viz.scene import TONES, Arrow, Bar, Panel, Words, clean, compose, text_width
from modularml.viz.style import INK, MUTED, SERIES

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert(\"x & 'y'\")</script>"
SUFFIXES = (".svg", ".html", ".mmd", ".txt", ".png", ".pdf")


WORDS = st.sampled_from(["", "x", "features.voltage.raw", "a few words more"])
ANYTHING = st.text(max_size=60)


@st.composite
def diagrams(draw, text=WORDS):
    """Draw any diagram: with cycles, parallel edges, loose nodes, equal titles."""
    count = draw(st.integers(0, 9))
    nodes = [
        DiagramNode(
            f"id{i}",
            draw(text),
            draw(st.lists(text, max_size=3)),
            draw(st.sampled_from(sorted(TONES))),
            draw(st.booleans()),
        )
        for i in range(count)
    ]
    ends = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))
    pairs = draw(st.lists(ends.filter(lambda e: e[0] != e[1]), max_size=14)) if count > 1 else []
    edges = [
        DiagramEdge(
            f"id{a}",
            f"id{b}",
            draw(text),
            draw(st.sampled_from(["solid", "dashed"])),
            draw(st.sampled_from(["", "stop"])),
        )
        for a, b in pairs
    ]
    return Diagram(draw(text), nodes, edges, draw(st.sampled_from(["LR", "TB"])))


@pytest.fixture
def fusion():
    nodes = [
        DiagramNode("fs", "PulseData", ["508 samples"], "featureset"),
        DiagramNode("v", "Voltage encoder", ["(1, 101) -> (16,)"], "torch"),
        DiagramNode("c", "Current encoder", ["frozen"], "torch", dimmed=True),
        DiagramNode("cat", "Concat", ["axis 1"], "merge"),
        DiagramNode("head", "Capacity head", ["Ridge"], "sklearn"),
    ]
    edges = [
        DiagramEdge("fs", "v", "voltage"),
        DiagramEdge("fs", "c", "current", style="dashed"),
        DiagramEdge("v", "cat"),
        DiagramEdge("c", "cat"),
        DiagramEdge("cat", "head", marker="stop"),
    ]
    return Diagram("Pulse to capacity", nodes, edges)


def scene_of(diagram):
    return compose(diagram.title, diagram.nodes, diagram.edges, diagram.direction)


def shapes(diagram, role, kind):
    """Return, for each group of a role, its shapes of one kind."""
    groups = [group for group in scene_of(diagram).groups if group.role == role]
    return [[shape for shape in group.shapes if isinstance(shape, kind)] for group in groups]


def boxes_of(diagram):
    return [panels[0].box for panels in shapes(diagram, "node", Panel)]


def text_box(words):
    """Return the ground that one line of text covers."""
    width = text_width(words.text, words.size, bold=words.bold)
    return Rect(words.at.x, words.at.y - words.size * 0.8, width, words.size)


def overlap(one, two, slack=0.01):
    return (
        one.x + one.width > two.x + slack
        and two.x + two.width > one.x + slack
        and one.y + one.height > two.y + slack
        and two.y + two.height > one.y + slack
    )


def holds(outer, inner, slack=0.01):
    return (
        inner.x >= outer.x - slack
        and inner.y >= outer.y - slack
        and inner.x + inner.width <= outer.x + outer.width + slack
        and inner.y + inner.height <= outer.y + outer.height + slack
    )


def along(curve, steps=12):
    """Yield points on a Bezier curve as zero-sized boxes, without its two ends."""
    for start in range(0, len(curve) - 1, 3):
        points = curve[start : start + 4]
        for step in range(1, steps):
            t = step / steps
            weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
            yield Rect(
                *(sum(w * p[i] for w, p in zip(weights, points, strict=True)) for i in (0, 1)), 0, 0
            )


# ---- geometry


@given(diagrams())
@settings(deadline=None, max_examples=60)
def test_nothing_overlaps_and_nothing_leaves_the_sheet(diagram):
    sheet = scene_of(diagram).sheet
    boxes = boxes_of(diagram)
    labels = [text_box(words) for group in shapes(diagram, "edge", Words) for words in group]
    assert len(boxes) == len(diagram.nodes)
    for one, two in combinations(boxes + labels, 2):
        assert not overlap(one, two)
    heading = [text_box(words) for group in shapes(diagram, "title", Words) for words in group]
    for frame in boxes + labels + heading:
        assert holds(sheet, frame)


@given(diagrams())
@settings(deadline=None, max_examples=60)
def test_no_edge_runs_through_a_box_or_a_label(diagram):
    frames = boxes_of(diagram)
    frames += [text_box(words) for group in shapes(diagram, "edge", Words) for words in group]
    for (arrow,) in shapes(diagram, "edge", Arrow):
        for point in along(arrow.curve):
            assert not any(overlap(point, frame) for frame in frames)


@given(diagrams())
@settings(deadline=None, max_examples=40)
def test_edges_start_and_end_at_the_sides_of_their_boxes(diagram):
    boxes = dict(zip((node.id for node in diagram.nodes), boxes_of(diagram), strict=True))
    for edge, (arrow,) in zip(diagram.edges, shapes(diagram, "edge", Arrow), strict=True):
        for place, name in ((arrow.curve[0], edge.source), (arrow.head[0], edge.target)):
            box = boxes[name]
            assert holds(box, Rect(*place, 0, 0))
            at, low, size = (
                (place.x, box.x, box.width)
                if diagram.direction == "LR"
                else (place.y, box.y, box.height)
            )
            assert at == pytest.approx(low) or at == pytest.approx(low + size)


@given(diagrams())
@settings(deadline=None, max_examples=40)
def test_text_stays_in_its_box(diagram):
    for panels, words in zip(
        shapes(diagram, "node", Panel), shapes(diagram, "node", Words), strict=True
    ):
        for line in words:
            assert holds(panels[0].box, text_box(line))


@pytest.mark.parametrize("direction", ["LR", "TB"])
def test_edges_lead_onward(fusion, direction):
    diagram = Diagram("", fusion.nodes, fusion.edges, direction)
    boxes = dict(zip((node.id for node in fusion.nodes), boxes_of(diagram), strict=True))
    for edge in fusion.edges:
        source, target = boxes[edge.source], boxes[edge.target]
        if direction == "LR":
            assert source.x + source.width < target.x
        else:
            assert source.y + source.height < target.y


def test_a_chain_is_one_straight_line():
    links = [Link("a", "b", (40.0, 12.0)), Link("b", "c"), Link("c", "d")]
    layout = lay_out({"a": (80, 60), "b": (50, 30), "c": (70, 90), "d": (50, 50)}, links, "LR")
    heights = [point.y for route in layout.routes for point in route.points]
    assert heights == pytest.approx([heights[0]] * len(heights))


@pytest.mark.parametrize("direction", ["LR", "TB"])
def test_a_long_edge_runs_straight_past_the_boxes(direction):
    names = "abcdef"
    links = [*(Link(one, two) for one, two in pairwise(names)), Link("b", "f", (60.0, 14.0))]
    layout = lay_out(dict.fromkeys(names, (70.0, 50.0)), links, direction)
    inner = [p.y if direction == "LR" else p.x for p in layout.routes[-1].points[1:-1]]
    assert max(inner) - min(inner) < 12, "less than the height of a line of text"


def test_a_parent_stands_in_the_middle_of_its_children():
    links = [Link("root", name) for name in "abc"]
    layout = lay_out(dict.fromkeys(["root", *"abc"], (60.0, 30.0)), links, "TB")
    assert layout.boxes["root"].x == pytest.approx(layout.boxes["b"].x)


def test_crossings_that_can_be_avoided_are():
    sizes = dict.fromkeys("abcxyz", (60.0, 30.0))
    layout = lay_out(sizes, [Link("a", "z"), Link("b", "y"), Link("c", "x")], "LR")
    upper = sorted("abc", key=lambda name: layout.boxes[name].y)
    partner = dict(zip("abc", "zyx", strict=True))
    assert [partner[name] for name in upper] == sorted("xyz", key=lambda n: layout.boxes[n].y)


def test_an_edge_that_closes_a_cycle_leads_back():
    nodes = [DiagramNode(name, name) for name in "abc"]
    edges = [DiagramEdge("a", "b"), DiagramEdge("b", "c"), DiagramEdge("c", "a")]
    arrows = [arrow for (arrow,) in shapes(Diagram("", nodes, edges), "edge", Arrow)]
    assert [arrow.head[0].x > arrow.curve[0].x for arrow in arrows] == [True, True, False]


def test_parallel_edges_are_drawn_apart():
    nodes = [DiagramNode("a", "A"), DiagramNode("b", "B")]
    (one,), (two,) = shapes(Diagram("", nodes, [DiagramEdge("a", "b")] * 2), "edge", Arrow)
    assert min(abs(a.y - b.y) for a, b in zip(one.curve[3:6], two.curve[3:6], strict=True)) > 8


def test_the_bar_stands_square_on_its_edge(fusion):
    (bar,) = [bars[0] for bars in shapes(fusion, "edge", Bar) if bars]
    assert bar.tip == "gradients stop here"
    assert bar.start.x == pytest.approx(bar.end.x), "the last edge is horizontal"
    assert abs(bar.start.y - bar.end.y) == pytest.approx(18)
    assert len(shapes(fusion, "key", Bar)) == 1
    assert not shapes(Diagram("", fusion.nodes, fusion.edges[:4]), "key", Bar)


def test_large_diagrams_are_quick_and_deep_ones_work():
    nodes = [DiagramNode(str(i), str(i)) for i in range(1500)]
    edges = [DiagramEdge(str(i), str(i + 1)) for i in range(1499)]
    diagram = Diagram("", nodes, edges)
    assert diagram.to_svg().count("<polygon") == 1499
    assert len(diagram.to_text().splitlines()) == 1500


# ---- writing


def svg_texts(svg):
    return [element.text or "" for element in ET.fromstring(svg).iter(SVG + "text")]


@given(diagrams(ANYTHING))
@settings(deadline=None, max_examples=60)
def test_svg_is_xml_that_holds_every_text(diagram):
    root = ET.fromstring(diagram.to_svg())
    groups = [group.get("class") for group in root]
    assert groups.count("node") == len(diagram.nodes)
    assert groups.count("edge") == len(diagram.edges)
    drawn = "".join("".join(svg_texts(diagram.to_svg())).split())
    for text in [diagram.title, *(node.title for node in diagram.nodes)]:
        assert "".join(clean(text).split()) in drawn
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        "svg", "g", "title", "rect", "path", "polygon", "text",
    }  # fmt: skip
    assert not {"id", "style", "href", "onload"} & {k for e in root.iter() for k in e.attrib}


@given(diagrams(ANYTHING))
@settings(deadline=None, max_examples=60)
def test_mermaid_labels_come_back_whole(diagram):
    lines = diagram.to_mermaid().splitlines()
    read = re.compile(r'    n(\d+)\["([^"\[\]{}<>|`]*(?:<br/>[^"\[\]{}<>|`]*)*)"\]:::kind_\w+')
    found = [match for line in lines if (match := read.fullmatch(line))]
    assert [int(match[1]) for match in found] == list(range(len(diagram.nodes)))
    for match, node in zip(found, diagram.nodes, strict=True):
        plain = re.sub(r"#(\d+);", lambda code: chr(int(code[1])), match[2].split("<br/>")[0])
        assert plain.strip("\u200b") == clean(node.title).strip("\u200b")
    arrow = re.compile(r'    n(\d+) (-->|-\.->|--x|-\.-x)(?:\|"([^"<>|]*)"\|)? n(\d+)')
    drawn = [match for line in lines if (match := arrow.fullmatch(line))]
    names = {node.id: str(i) for i, node in enumerate(diagram.nodes)}
    assert [(m[1], m[4]) for m in drawn] == [
        (names[e.source], names[e.target]) for e in diagram.edges
    ]
    for match, edge in zip(drawn, diagram.edges, strict=True):
        assert ("x" in match[2], "." in match[2]) == (edge.marker == "stop", edge.style == "dashed")


@given(diagrams(st.text("abc ", max_size=9)))
@settings(deadline=None, max_examples=60)
def test_the_listing_has_one_branch_an_edge_and_each_node_once(diagram):
    bare = Diagram("", [DiagramNode(n.id, n.title) for n in diagram.nodes], diagram.edges)
    lines = bare.to_text().splitlines()
    branches = [line for line in lines if re.match(r"[| ]*[+`](--|\.\.) ", line)]
    assert len(branches) == len(bare.edges)
    first = [line for line in lines if " (above)" not in line]
    assert len(first) == len(bare.nodes)
    for node in bare.nodes:
        assert any(clean(node.title) in line for line in first)


def test_listing(fusion):
    assert str(fusion) == (
        "Pulse to capacity\n"
        "PulseData (featureset)\n"
        "|   508 samples\n"
        "+-- Voltage encoder (torch)  <- voltage\n"
        "|   |   (1, 101) -> (16,)\n"
        "|   `-- Concat (merge)\n"
        "|       |   axis 1\n"
        "|       `-- Capacity head (sklearn)  <- gradients stop here\n"
        "|               Ridge\n"
        "`.. Current encoder (torch, dimmed)  <- current\n"
        "    |   frozen\n"
        "    `-- Concat (merge) (above)"
    )


def test_equal_titles_are_told_apart_by_id():
    nodes = [DiagramNode("a", "Encoder"), DiagramNode("b", "Encoder"), DiagramNode("c", "Head")]
    assert str(Diagram("", nodes)).splitlines() == ["Encoder #a", "Encoder #b", "Head"]


def test_hostile_text_is_escaped_everywhere():
    nodes = [DiagramNode("a", HOSTILE, [HOSTILE]), DiagramNode("b", 'end"]:::x --> n0')]
    diagram = Diagram(HOSTILE, nodes, [DiagramEdge("a", "b", HOSTILE, marker="stop")])
    page = diagram._repr_html_()
    for written in (diagram.to_svg(), page, diagram.to_mermaid()):
        assert "<script" not in written
    assert svg_texts(diagram.to_svg()).count(HOSTILE) == 3
    assert diagram.to_mermaid().count("-->") == 0
    assert "direction TB" not in Diagram("", [DiagramNode("a", "a direction TB b")]).to_mermaid()
    assert "a\ufffdb" in Diagram("a\x00b", []).to_svg()
    ET.fromstring(Diagram("\ud800\x1b[31m", nodes).to_svg().encode())


def test_dimmed_nodes_are_pale_and_dashed(fusion):
    root = ET.fromstring(fusion.to_svg())
    rects = [group.find(SVG + "rect") for group in root if group.get("class") == "node"]
    dashed = [rect.get("stroke-dasharray") is not None for rect in rects]
    assert dashed == [node.dimmed for node in fusion.nodes]
    assert [float(rect.get("fill-opacity")) < 0.5 for rect in rects] == dashed
    assert "    class n2 dimmed" in fusion.to_mermaid().splitlines()


def test_edges_tell_what_they_join_when_pointed_at(fusion):
    tips = [title.text for title in ET.fromstring(fusion.to_svg()).iter(SVG + "title")]
    assert "PulseData → Voltage encoder: voltage" in tips
    assert "Concat → Capacity head: gradients stop here" in tips
    assert tips.count("gradients stop here") == 1


@pytest.mark.parametrize("direction", ["LR", "TB"])
def test_empty_diagrams_work(tmp_path, direction):
    empty = Diagram("", [], direction=direction)
    ET.fromstring(empty.to_svg())
    assert empty.to_text() == ""
    assert empty.to_mermaid() == f"flowchart {direction}\n"
    assert empty.save(tmp_path / "empty.svg").exists()


def test_notebooks_get_svg_and_html(fusion):
    assert fusion._repr_svg_() == fusion.to_svg()
    assert fusion.to_svg() in fusion._repr_html_()


# ---- colours


def luminance(colour):
    """Relative luminance after WCAG 2.1."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, two):
    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("kind", sorted(TONES))
def test_text_is_readable_on_every_box(kind):
    assert contrast(TONES[kind].fill, INK) >= 7
    assert contrast(TONES[kind].fill, TONES[kind].ink) >= 4.5


@pytest.mark.parametrize("ground", ["#FFFFFF", "#111111"])
def test_lines_and_labels_are_readable_on_light_and_dark(ground):
    assert contrast(MUTED, ground) >= 4


# Machado, Oliveira & Fernandes 2009, doi:10.1109/TVCG.2009.113, table 1, severity 1.0.
SIGHTS = {
    "all cones": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def lab(colour, sight):
    """Return a colour as somebody sees it, in CIE Lab (D65)."""
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = to_xyz @ np.clip(sight @ linear, 0, 1) / (0.9505, 1.0, 1.089)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", sorted(SIGHTS))
@pytest.mark.parametrize("colours", [SERIES, [tone.line for tone in TONES.values()]])
def test_colours_are_told_apart_by_colour_blind_readers_too(colours, sight):
    seen = [lab(colour, np.array(SIGHTS[sight])) for colour in colours]
    assert min(np.linalg.norm(one - two) for one, two in combinations(seen, 2)) > 12


# ---- files


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_save_writes_what_the_suffix_says(fusion, tmp_path, suffix):
    if suffix in {".png", ".pdf"}:
        pytest.importorskip("matplotlib")
    path = fusion.save(str(tmp_path / f"d{suffix.upper()}"))
    assert path == tmp_path / f"d{suffix.upper()}"
    written = path.read_bytes()
    if suffix in {".svg", ".mmd", ".txt"}:
        form = {".svg": fusion.to_svg, ".mmd": fusion.to_mermaid, ".txt": fusion.to_text}[suffix]
        assert written.decode().strip() == form().strip()
    starts = {".png": b"\x89PNG", ".pdf": b"%PDF", ".html": b"<!doctype html>"}
    assert written.startswith(starts.get(suffix, b""))
    assert fusion.save(path).read_bytes() == written, "the same diagram is the same file"


def test_html_is_a_page_of_its_own(fusion, tmp_path):
    page = fusion.save(tmp_path / "d.html").read_text(encoding="utf-8")
    assert fusion.to_svg() in page
    assert "<title>Pulse to capacity</title>" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize("direction", ["LR", "TB"])
def test_png_shows_every_box_in_its_colour(fusion, tmp_path, direction):
    image = pytest.importorskip("matplotlib.image")
    diagram = Diagram(fusion.title, fusion.nodes, fusion.edges, direction)
    pixels = image.imread(diagram.save(tmp_path / "d.png"))
    sheet = scene_of(diagram).sheet
    assert pixels.shape[:2] == pytest.approx((2 * sheet.height, 2 * sheet.width), abs=2)
    for node, box in zip(diagram.nodes, boxes_of(diagram), strict=True):
        rows = slice(int(2 * (box.y - sheet.y)), int(2 * (box.y + box.height - sheet.y)))
        columns = slice(int(2 * (box.x - sheet.x)), int(2 * (box.x + box.width - sheet.x)))
        part = pixels[rows, columns, :3]
        fill = [int(TONES[node.kind].fill[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        share = (abs(part - fill).max(axis=2) < 0.01).mean()
        assert share < 0.02 if node.dimmed else share > 0.5
        assert (part.sum(axis=2) < 1.7).mean() > 0.005, "text and border are dark"


def test_drawn_text_fits_its_box():
    pytest.importorskip("matplotlib")
    from modularml.viz.diagram import PIXELS, to_figure

    titles = ["Voltage encoder", "WWWWWWMMMMMM", "features.voltage.raw", "(1, 101) -> (16,) @ 5 %"]
    nodes = [DiagramNode(str(i), title, [title, title.upper()]) for i, title in enumerate(titles)]
    diagram = Diagram("", nodes)
    figure = to_figure(scene_of(diagram))
    sheet = scene_of(diagram).sheet
    edges = {box.y: box.x + box.width - sheet.x for box in boxes_of(diagram)}
    for text in figure.axes[0].texts:
        box = max(y for y in edges if y <= text.get_position()[1])
        extent = text.get_window_extent()
        assert extent.x1 * PIXELS / figure.dpi < edges[box] - 4


def test_save_names_what_is_allowed(fusion, tmp_path):
    with pytest.raises(ConfigError, match=r"\.svg, \.html, \.mmd, \.txt, \.png, \.pdf.*'.*d\.gif'"):
        fusion.save(tmp_path / "d.gif")
    with pytest.raises(ConfigError, match="must end in"):
        fusion.save(tmp_path)


def test_save_makes_no_folders(fusion, tmp_path):
    with pytest.raises(ConfigError, match=r"folder '.*missing' does not exist"):
        fusion.save(tmp_path / "missing" / "d.svg")
    assert not (tmp_path / "missing").exists()


def test_without_matplotlib_only_pictures_fail(fusion, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert fusion.save(tmp_path / "d.svg").exists()
    with pytest.raises(MissingDependencyError, match=r"pip install '.\[plot\]'"):
        fusion.save(tmp_path / "d.png")


SCRIPT = """
import sys
from modularml.viz import Diagram, DiagramEdge, DiagramNode
nodes = [DiagramNode(str(i), f"Node {i}") for i in range(9)]
edges = [DiagramEdge(str(i // 2), str(i), "x" * (i % 3)) for i in range(1, 9)]
edges += [DiagramEdge("0", "7"), DiagramEdge("1", "8")]
print(Diagram("d", nodes, edges).to_svg())
assert "matplotlib" not in sys.modules
"""


def test_the_drawing_is_the_same_in_every_process_and_needs_no_matplotlib():
    drawings = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(drawings) == 1


# ---- checks


def test_ids_must_be_unique():
    with pytest.raises(GraphError, match="more than once: 'a'"):
        Diagram("", [DiagramNode("a", "A"), DiagramNode("a", "B"), DiagramNode("b", "B")])


def test_edges_must_join_known_nodes():
    nodes = [DiagramNode("encoder", "E")]
    with pytest.raises(GraphError, match=r"unknown node 'encodr'; did you mean 'encoder'\?"):
        Diagram("", nodes, [DiagramEdge("encoder", "encodr")])
    with pytest.raises(GraphError, match="'encoder' with itself"):
        Diagram("", nodes, [DiagramEdge("encoder", "encoder")])


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: DiagramNode("a", "A", kind="pytorch"), UnknownNameError, "did you mean 'torch'"),
        (lambda: DiagramEdge("a", "b", style="dotted"), ConfigError, "'solid' or 'dashed'"),
        (lambda: DiagramEdge("a", "b", marker="x"), ConfigError, "'' or 'stop', got 'x'"),
        (lambda: Diagram("", [], direction="RL"), ConfigError, "'LR' or 'TB', got 'RL'"),
    ],
)
def test_wrong_words_are_named(make, error, words):
    with pytest.raises(error, match=words) as caught:
        make()
    assert isinstance(caught.value, ModularMLError)


def test_parts_are_values(fusion):
    assert fusion == Diagram(fusion.title, list(fusion.nodes), list(fusion.edges))
    assert hash(fusion) == hash(Diagram(fusion.title, fusion.nodes, fusion.edges))
    assert DiagramNode("a", "A", "one line") == DiagramNode("a", "A", ["one line"])
