"""Scripts for ModularML 1.0 are read, and what must change in them is named."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from modularml import migrate
from modularml.cli import main
from modularml.errors import ConfigError
from modularml.migrate.scripts import ARGUMENTS, ATTRIBUTES, METHODS

SCRIPT = """
import numpy as np
import modularml as mml
import modularml.utils.data.formats as formats
from modularml import FeatureSet, ResultRecording
from modularml.api import Experiment
from modularml.core import sampling
from modularml.core.sampling import NSampler as Sampler, Sampeler
from modularml.callbacks import MetricResult
from modularml.models.torch import SequentialMLP

fs = FeatureSet.from_dict("a", {}, [], [])
node = mml.core.models.ModelNode("n", SequentialMLP(), fs.reference(features="x"))
sampler = mml.TripletSampler({}, {}, shuffle=True, n_workers=4)
quiet = sampling.PairedSampler({}, shuffle=True, seed=1, **options)
results = mml.ResultsConfig(save_losses=True, results_dir="x")
fs.get_targets(rep="raw")
fs.get_targets()
print(result.eval_results, node.get_upstream_refs(), formats.DataFormat, ResultRecording.ALL)


class Own(Sampler):
    def build_samples(self):
        return MetricResult(metric_name="x", value=1.0)
"""


def found(source, *kinds):
    return [(f.line, f.name, f.advice) for f in migrate.check(source) if f.kind in kinds]


def test_what_has_moved_or_been_renamed():
    module = "no such module here; import the names from their new places"
    assert found(SCRIPT, "moved", "renamed") == [
        (4, "modularml.utils.data.formats", module),
        (6, "modularml.api.Experiment", "from modularml import Experiment"),
        (7, "modularml.core.sampling", module),
        (8, "modularml.core.sampling.NSampler", "from modularml import NSampler"),
        (13, "modularml.core.models.ModelNode", "from modularml import ModelNode"),
        (
            14,
            "TripletSampler(n_workers=)",
            "no effect: the search for pairs is vectorised, in one process",
        ),
        (15, "modularml.core.sampling.PairedSampler", "from modularml import PairedSampler"),
        (
            16,
            "ResultsConfig(save_losses=)",
            "no effect: phases record by result_recording=, save(results=) stores it",
        ),
        (19, ".eval_results", ".results"),
        (19, ".get_upstream_refs()", ".upstream_refs"),
        (19, "modularml.utils.data.formats.DataFormat", "from modularml.data import DataFormat"),
        (23, "build_samples", "a sampler of your own defines sample(view, epoch); see BaseSampler"),
        (24, "MetricResult(metric_name=)", "name="),
    ]


def test_what_is_unknown_and_what_differs():
    ((line, name, advice),) = found(SCRIPT, "unknown")
    assert (line, name) == (8, "modularml.core.sampling.Sampeler")
    assert "'NSampler'" in advice
    differs = [(line, name) for line, name, _ in found(SCRIPT, "differs")]
    assert differs == [
        (13, ".reference()"),
        (14, "TripletSampler(shuffle=)"),
        (18, ".get_targets()"),
    ]


@pytest.mark.parametrize(
    "source",
    [
        "",
        "import numpy as np\nnp.core.get_data()\nx.eval_results",
        "import modularml as mm\nmm.FeatureSet.from_df(...)\nmm.ResultRecording.ALL\nmm.data.Batch",
        "from modularml.callbacks import *\nfrom . import core\nimport modularml.data.view",
        "from modularml.errors import expect\nfrom modularml.scalers import StandardScaler",
    ],
)
def test_nothing_to_say(source):
    assert migrate.check(source) == []


def test_every_new_place_exists():
    table = migrate.names()
    assert table["modularml.core.*.BaseSampler"] == "modularml.samplers.BaseSampler"
    assert table["modularml.transforms.*.Negate"] == "modularml.scalers.Negate"
    assert table["ArtifactResult(artifact=)"] == "ArtifactResult(value=)"
    for old, new in table.items():
        if old.startswith("modularml."):
            module, _, name = new.rpartition(".")
            public = importlib.import_module(module).__all__
            assert name in public, new
    classes = {w for part in (ATTRIBUTES, METHODS, ARGUMENTS) for w in part}
    for where in classes:
        module, _, name = where.partition(":")
        cls = getattr(importlib.import_module(module), name)
        for new in METHODS.get(where, {}).values():
            assert hasattr(cls, new.partition("(")[0])


def test_files(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT, "utf-8")
    assert migrate.check(path) == migrate.check(str(path)) == migrate.check(SCRIPT)
    cells = [
        {"cell_type": "markdown", "source": "from modularml.api import FeatureSet"},
        {"cell_type": "code", "source": ["%matplotlib inline\n", "import modularml\n", "!ls\n"]},
        {"cell_type": "code", "source": "%%bash\nmodularml run plan.yaml"},
        {"cell_type": "code", "source": "modularml.core.FeatureSet"},
    ]
    book = tmp_path / "book.ipynb"
    book.write_text(json.dumps({"cells": cells}), "utf-8")
    assert str(migrate.check(book)[0]) == (
        "6:1: moved: modularml.core.FeatureSet: from modularml import FeatureSet"
    )


@pytest.mark.parametrize("content", [None, b"\xff", b"[]", b'{"cells": [{}]}', b"{"])
@pytest.mark.parametrize("suffix", [".py", ".ipynb"])
def test_what_cannot_be_read(tmp_path, content, suffix):
    path = tmp_path / f"bad{suffix}"
    if content is not None:
        path.write_bytes(content)
    if suffix == ".py" and content in (b"[]", b'{"cells": [{}]}'):
        assert migrate.check(path) == []
        return
    with pytest.raises(ConfigError, match=f"bad{suffix}"):
        migrate.check(path)


@pytest.mark.parametrize("source", ["def f(:", "x = (", "a\0b"])
def test_what_is_no_python(source):
    with pytest.raises(ConfigError, match="no Python that can be read: line"):
        migrate.check(source)


def test_no_framework_is_loaded():
    code = f"from modularml import migrate; migrate.check({SCRIPT!r}); import sys; "
    code += "assert not {'torch', 'tensorflow', 'keras'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_the_command(tmp_path, capsys):
    path = tmp_path / "script.py"
    path.write_text("from modularml.api import FeatureSet\n", "utf-8")
    assert main(["migrate", str(path)]) == 1
    line = f"{path}:1:1: moved: modularml.api.FeatureSet: from modularml import FeatureSet\n"
    assert capsys.readouterr().out == line
    assert main(["migrate", "--json", str(path)]) == 1
    (finding,) = json.loads(capsys.readouterr().out)
    assert (finding["file"], finding["line"], finding["kind"]) == (str(path), 1, "moved")
    path.write_text("import modularml\n", "utf-8")
    assert main(["migrate", str(path)]) == 0
    assert capsys.readouterr().out == "nothing to change\n"
    assert main(["migrate", str(tmp_path / "none.py")]) == 1
    assert "none.py" in capsys.readouterr().err
