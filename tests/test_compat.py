"""Scripts for ModularML 1.0 run unchanged after ``import modularml.compat``."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAD = """
import json, warnings
import numpy as np
import modularml.compat
from modularml.errors import ModularMLError

def told(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = call()
        except Exception as error:
            result = f"{type(error).__name__}: {error}"
    ours = [w for w in caught if issubclass(w.category, modularml.compat.OldNameWarning)]
    assert all(w.filename == __file__ for w in ours), [w.filename for w in ours]
    return [result, [str(w.message) for w in ours]]

out = {}
"""


def run(tmp_path: Path, script: str) -> dict[str, list]:
    """Run a script in a new process, since what it imports changes classes."""
    path = tmp_path / "script.py"
    path.write_text(f"{HEAD}\n{script}\nprint('OUT' + json.dumps(out))", "utf-8")
    command = [sys.executable, "-W", "ignore", str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout.partition("OUT")[2])


NOT = "is a name of ModularML 1.0; here it is"


def test_modules(tmp_path):
    out = run(
        tmp_path,
        """
def imports():
    from modularml.core.experiment.results.phase_results import PhaseResults
    from modularml.core.experiment.results.phase_results import PhaseResults as again
    import modularml.results
    return PhaseResults is again is modularml.results.PhaseResults
out["class"] = told(imports)
def module():
    from modularml.core.data import schema
    import modularml.utils.data.formats as formats
    return schema.SampleSchema.__name__ + formats.DataFormat.__name__
out["module"] = told(module)
out["path"] = told(lambda: modularml.api.FeatureSet.__name__)
def real():
    from modularml import FeatureSet
    from modularml.data.schema import SampleSchema
    import modularml.scalers.elementary
out["real"] = told(real)
def wrong():
    from modularml.core.data import FeatureSett
out["wrong"] = told(wrong)
out["none"] = told(lambda: hasattr(modularml.core, "nothing"))
import sys
out["loaded"] = sorted({"torch", "tensorflow", "keras"} & set(sys.modules))
""",
    )
    old = "modularml.core.experiment.results.phase_results.PhaseResults"
    assert out["class"] == [True, [f"{old} {NOT} modularml.results.PhaseResults"]]
    assert out["module"][0] == "SampleSchemaDataFormat"
    assert [w.rpartition(" ")[2] for w in out["module"][1]] == [
        "modularml.data.SampleSchema",
        "modularml.data.DataFormat",
    ]
    assert out["path"] == ["FeatureSet", [f"modularml.api.FeatureSet {NOT} modularml.FeatureSet"]]
    assert out["real"] == [None, []]
    assert "ImportError" in out["wrong"][0]
    assert "did you mean 'FeatureSet'" in out["wrong"][0]
    assert out["none"] == [False, []]
    assert out["loaded"] == []


def test_attributes_methods_and_arguments(tmp_path):
    out = run(
        tmp_path,
        """
import modularml as mml
from modularml.callbacks import ArtifactResult, EvaluationCallbackResult, MetricResult
from modularml.predicates import GT
from modularml.results import MetricEntry
from modularml.samplers import PairedSampler, SimilarityCondition, SimpleSampler, TripletSampler

out["metric"] = told(lambda: vars(MetricResult(metric_name="a", metric_value=2.0)))
out["metric again"] = told(lambda: vars(MetricResult(metric_name="a", metric_value=2.0)))
artifact = ArtifactResult(artifact_name="a", artifact=[1])
out["artifact"] = told(lambda: [artifact.name, artifact.value, artifact.artifact])
out["both"] = told(lambda: MetricResult(name="b", metric_name="a", value=2.0))
out["entry"] = told(lambda: MetricEntry("a", 1.5, 7).epoch_idx)
result = EvaluationCallbackResult(label="val")
out["results"] = told(lambda: result.eval_results is result.results)
rows = mml.FeatureSet.from_dict(
    "rows", {"x": np.arange(6.0), "y": np.arange(6.0), "g": list("aabbcc")}, "x", "y", "g"
)
same = {"g": SimilarityCondition()}
make = lambda **kwargs: PairedSampler(same, batch_size=2, seed=1, source=rows, **kwargs)
out["workers"] = told(lambda: make(n_workers=2) == make())
out["triplets"] = told(lambda: TripletSampler(same, same, n_workers=1).roles[1])
out["misspelt"] = told(lambda: make(n_worker=2))
sampler = SimpleSampler(batch_size=4, source=rows)
out["batches"] = told(lambda: len(sampler.build_samples().streams["default"]))
out["predicate"] = told(lambda: GT(3).to_dict() == GT(3).get_config())
first, second = (mml.ModelNode(n, object_, rows) for n, object_ in (
    ("a", __import__("sklearn.linear_model").linear_model.Ridge()),
    ("b", __import__("sklearn.linear_model").linear_model.Ridge())))
concat = mml.ConcatNode("both", [first, second])
out["upstream"] = told(lambda: [ref.node_label for ref in concat.get_upstream_refs()])
out["build"] = told(lambda: concat.build(input_shapes=[[2], (3,)]))
out["shapes"] = told(lambda: concat.input_shapes)
out["save"] = told(lambda: mml.ResultsConfig(save_outputs=True) == mml.ResultsConfig())
out["save not"] = told(lambda: mml.ResultsConfig(save_outputs=False))
out["save misspelt"] = told(lambda: mml.ResultsConfig(result_dir="x"))
""",
    )
    metric = {"name": "a", "value": 2.0, "label": "", "epoch": None, "batch": None, "edge": ""}
    assert out["metric"] == [
        metric,
        [
            f"MetricResult(metric_name=) {NOT} MetricResult(name=)",
            f"MetricResult(metric_value=) {NOT} MetricResult(value=)",
        ],
    ]
    assert out["metric again"] == [metric, []]
    assert out["artifact"] == [
        ["a", [1], [1]],
        [f"ArtifactResult.artifact {NOT} ArtifactResult.value"],
    ]
    assert out["both"][0].startswith("ConfigError: pass name or metric_name")
    assert out["entry"] == [7, [f"MetricEntry.epoch_idx {NOT} MetricEntry.epoch"]]
    assert out["results"][0] is True
    assert "here it is EvaluationCallbackResult.results" in out["results"][1][0]
    assert out["workers"][0] is True
    assert "here it has no effect: the search" in out["workers"][1][0]
    assert out["triplets"][0] == "positive"
    assert out["misspelt"][0].startswith("TypeError")
    assert out["batches"][0] == 2
    assert "BaseSampler.materialize_batches()" in out["batches"][1][0]
    assert out["predicate"][0] is True
    assert out["upstream"] == [
        ["a", "b"],
        [f"GraphNode.get_upstream_refs() {NOT} GraphNode.upstream_refs"],
    ]
    assert out["build"][0] == [5]
    assert out["shapes"] == [[[2], [3]], []]
    assert out["save"][0] is True
    assert "ResultsConfig(save_outputs=)" in out["save"][1][0]
    assert "result_recording='none'" in out["save not"][0]
    assert out["save misspelt"][0].startswith("TypeError")


def test_without_it_nothing_of_1_can_be_imported():
    code = "import modularml.migrate, modularml.core"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "No module named 'modularml.core'" in done.stderr


@pytest.mark.parametrize("extra", ["import modularml.compat\n", ""])
def test_other_scripts_run_as_before(tmp_path, extra):
    """The same script, with the wrapped classes and without, saves and loads the same."""
    code = f"""{extra}
import numpy as np
import modularml as mml
from modularml.samplers import BaseSampler, PairedSampler, SimilarityCondition

class Own(PairedSampler):
    def __init__(self, conditions, *, extra=1, **kwargs):
        super().__init__(conditions, **kwargs)
        self.extra = extra

own = Own({{"g": SimilarityCondition()}}, extra=3, batch_size=2)
assert Own.from_config(own.get_config()) == own
assert BaseSampler.load(own.save(r"{tmp_path / "own"}"), custom_objects={{"Own": Own}}) == own
try:
    PairedSampler({{}}, batch_size="x")
except mml.errors.ConfigError as error:
    assert "batch_size" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
