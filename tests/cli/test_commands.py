"""The command line, as a newcomer uses it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LogisticRegression

from modularml import demo
from modularml.cli import main
from modularml.context import ExperimentContext
from modularml.data import FeatureSet
from modularml.demo import load_diabetes as diabetes_set
from modularml.demo import load_digits as digits_set
from modularml.demo import run_digits


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    out = tmp_path_factory.mktemp("demo") / "pictures"
    out.mkdir()
    with ExperimentContext().activate():
        return out, run_digits(out, show=False)


def test_digits_reach_97_percent_and_beat_the_baseline(said: tuple[Path, float]) -> None:
    assert said[1] >= 0.97
    with ExperimentContext().activate():
        fs = digits_set()
        data = load_digits()
        rows = {name: fs[name].get_tags("numpy", tags="source_row")[:, 0] for name in fs.splits}
        pixels = data.images.reshape(len(data.images), -1) / 16
        model = LogisticRegression(max_iter=2000)
        model.fit(pixels[rows["train"]], data.target[rows["train"]])
        assert said[1] > model.score(pixels[rows["test"]], data.target[rows["test"]])


def test_digits_draw_three_pictures(said: tuple[Path, float]) -> None:
    names = {path.name for path in said[0].iterdir()}
    assert names == {"digits_loss.png", "digits_confusion.png", "digits_graph.svg"}
    assert ET.parse(said[0] / "digits_graph.svg").getroot().tag.endswith("svg")
    assert all((said[0] / name).stat().st_size > 5000 for name in names)


def test_splits_of_the_demo_do_not_leak() -> None:
    with ExperimentContext().activate():
        fs = digits_set()
        assert sum(len(view) for view in fs.splits.values()) == len(fs) == 1797
        assert fs["train"].is_disjoint_with(fs["test"])
        assert fs["val"].is_disjoint_with(fs["test"])
        assert {record.fit_to_split for record in fs.scaler_records} == {"train"}
        counts = [np.bincount(v.get_targets("numpy")[:, 0]) / len(v) for v in fs.splits.values()]
        assert np.ptp(np.stack(counts), axis=0).max() < 0.01


def test_diabetes_comes_in_its_own_units() -> None:
    with ExperimentContext().activate():
        fs = diabetes_set()
        raw = fs.get_targets("numpy", rep="raw")[:, 0]
    np.testing.assert_array_equal(raw, load_diabetes().target)


def test_command_runs_the_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(demo, "run_digits", lambda out, *, show: (out / "a.png").touch())
    with ExperimentContext().activate():
        assert main(["demo", "--quiet", "--out", str(tmp_path / "new")]) == 0
    printed = capsys.readouterr().out
    assert "test RMSE, network" in printed
    assert "ridge" in printed
    assert str(tmp_path / "new" / "diabetes_parity.png") in printed


def test_errors_are_one_line_and_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def stop(out: Path, *, show: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_digits", stop)
    assert main(["demo", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "modularml: interrupted\n"


def test_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["dance"])
    assert stop.value.code == 2
    assert "dance" in capsys.readouterr().err


def test_inspect_shows_a_file_and_builds_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with ExperimentContext().activate() as ctx:
        path = digits_set().save(tmp_path / "digits")
        known = len(ctx.available_nodes)
        assert main(["inspect", str(path)]) == 0
        assert main(["inspect", str(tmp_path / "digits")]) == 0
        assert len(ctx.available_nodes) == known
    shown = capsys.readouterr().out
    assert "digits" in shown
    assert "1797" in shown.replace(",", "")


def test_inspect_refuses_other_files_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "x.fs.mml").write_bytes(b"no archive")
    assert main(["inspect", str(tmp_path / "x.fs.mml")]) == 1
    assert "MML-" in capsys.readouterr().err


def test_audit_of_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(40), 8)
    frame = pd.DataFrame(
        {
            "a": rng.normal(size=40)[owner] + 0.3 * rng.normal(size=320),
            "b": rng.normal(size=320),
            "reel": [f"R{i}" for i in owner],
            "part": np.where(rng.random(320) < 0.7, "train", "test"),
            "y": rng.normal(size=320),
        }
    )
    frame.to_csv(tmp_path / "rows.csv", index=False)
    frame.to_parquet(tmp_path / "rows.parquet")
    page = tmp_path / "report.html"
    asked = ["--target", "y", "--split", "part", "--tag", "reel"]
    for name in ("rows.csv", "rows.parquet"):
        assert main(["audit", str(tmp_path / name), *asked, "--html", str(page)]) == 1
        said = capsys.readouterr().out
        assert "shared_groups" in said
        assert "'reel'" in said
        assert "group_by=" in said
    assert "shared_groups:reel" in page.read_text("utf-8")
    path = str(tmp_path / "rows.csv")
    assert main(["audit", path, *asked, "--allow", "shared_groups:reel"]) == 0
    assert "allowed: shared_groups:reel" in capsys.readouterr().out
    assert main(["audit", path, "--target", "y", "--group", "reel", "--tag", "part"]) == 0
    assert main(["audit", path]) == 1
    assert "--target is required" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "asked", "wanted"),
    [
        ("no.csv", None, [], "there is no file"),
        ("empty.csv", b"", [], "cannot be read as CSV with a first line of column names"),
        ("other.csv", b"\xff\xfe\x00a", [], "cannot be read as CSV"),
        ("junk.parquet", b"junk", [], "cannot be read as Parquet"),
        ("junk.mml", b"junk", [], "junk.mml"),
        ("bare.csv", b"a,y\n", [], "0 rows"),
        ("rows.csv", b"a,b\n1,2\n", [], "rows.csv'; known: 'a', 'b'"),
        ("rows.csv", b"a,y\n1,2\n", ["--group", "cel"], "unknown column 'cel'"),
        (
            "rows.csv",
            b"a,y\n1,2\n",
            ["--html", "none/x.html"],
            "--html needs a file in an existing folder",
        ),
    ],
)
def test_audit_refuses_odd_files_in_one_line(
    name: str,
    content: bytes | None,
    asked: list[str],
    wanted: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main(["audit", str(tmp_path / name), "--target", "y", *asked]) == 1
    said = capsys.readouterr().err
    assert said.startswith("modularml: ")
    assert wanted in said
    assert said.count("\n") == 1


def test_audit_of_a_saved_set_draws_pictures_of_what_it_finds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=200)
    curve = rng.normal(size=(180, 40)).cumsum(axis=1)
    columns = {"probe": y**3, "curve": np.concatenate([curve, curve[:20] * 2 + 1]), "y": y}
    fs = FeatureSet.from_dict("rows", columns, ["probe", "curve"], "y", register=False)
    fs.add_split(fs.take(np.arange(180), label="train"))
    fs.add_split(fs.take(np.arange(180, 200), label="test"))
    page = tmp_path / "report.html"
    assert main(["audit", str(fs.save(tmp_path / "rows")), "--html", str(page)]) == 1
    root = ET.fromstring(page.read_text("utf-8").replace("<br>", "<br/>"))
    pictures = {
        row[1].text: [shape.tag for shape in row[3].iter() if shape.tag in ("circle", "polyline")]
        for row in root.iter("tr")
    }
    assert pictures["similar_sequences"] == ["polyline"] * 2
    assert len(pictures["target_in_feature"]) == 120
