"""Write the reference: a page for each public name, and a page for each group of names.

A name stands once, where it is shortest to import. Its group is the first of `GROUPS` with a
pattern that fits, so a new public name without a group fails the build.
"""

import importlib
import importlib.util
import inspect
import shutil
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import apimembers
import usages

MODULES = [
    "modularml",
    "modularml.data",
    "modularml.audit",
    "modularml.splitters",
    "modularml.predicates",
    "modularml.scalers",
    "modularml.samplers",
    "modularml.models",
    "modularml.models.torch",
    "modularml.models.tensorflow",
    "modularml.graph",
    "modularml.callbacks",
    "modularml.strategies",
    "modularml.tracking",
    "modularml.space",
    "modularml.sklearn",
    "modularml.results",
    "modularml.io",
    "modularml.plotting",
    "modularml.report",
    "modularml.streams",
    "modularml.loop",
    "modularml.runner",
    "modularml.migrate",
    "modularml.errors",
]

GROUPS = {
    "rows": (
        "Rows",
        "Tables with features, targets and tags, views of their rows, and references to columns.",
        (
            "FeatureSet FeatureSetView data.FeatureSet*Reference data.DataFormat data.Sample[CS]c* "
            "data.SampleCollection data.ColumnSpec"
        ),
    ),
    "splits": (
        "Splits and conditions",
        "Who is trained on and who is tested on. `FeatureSet` has methods for the usual splits.",
        (
            "splitters.RandomSplitter splitters.ConditionSplitter splitters.*Fold* "
            "splitters.TimeSeriesSplitter splitters.* predicates.Predicate predicates.*"
        ),
    ),
    "scalers": (
        "Scalers and encoders",
        (
            "Steps that are fitted on training rows, recorded, and undone; see also "
            "`FeatureSet.fit_transform`. Any transformer of scikit-learn is one."
        ),
        "Scaler scalers.* scaler_registry",
    ),
    "leaks": ("Leaks", "What `FeatureSet.audit` finds and reports.", "audit.*"),
    "samplers": (
        "Samplers",
        "The order of rows in batches, pairs and triplets.",
        "SimpleSampler PairedSampler TripletSampler NSampler SimilarityCondition samplers.*",
    ),
    "models": (
        "Models",
        "Networks for torch and for Keras, and what makes a model of yours a part of a graph.",
        "models.torch.* models.tensorflow.* *ModelWrapper *BaseModel models.*",
    ),
    "graph": (
        "Graph",
        "Nodes, and the graph that they make.",
        (
            "ModelGraph ModelNode ConcatNode SumNode MeanNode FlattenNode FunctionNode "
            "graph.MergeNode graph.ComputeNode graph.GraphNode graph.* data.GraphNodeReference"
        ),
    ),
    "training": (
        "Training",
        "Experiments, their phases, losses and optimizers.",
        (
            "Experiment TrainPhase EvalPhase FitPhase PhaseGroup InputBinding AppliedLoss Loss "
            "Optimizer LRSchedule Checkpointing ResultRecording ResultsConfig "
            "BatchSchedulingPolicy Accelerator Backend ExperimentContext RegistrationPolicy"
        ),
    ),
    "callbacks": (
        "Callbacks",
        "What happens while a phase runs.",
        (
            "EarlyStopping Evaluation EvalLossMetric callbacks.ScoreMetric callbacks.EMA "
            "callbacks.SWA callbacks.LivePlot callbacks.[!E]*[!t] callbacks.Callback "
            "callbacks.ExperimentCallback callbacks.*"
        ),
    ),
    "results": (
        "Results",
        "What phases and runs leave behind, scores, and intervals of predictions.",
        (
            "TrainResults EvalResults FitResults PhaseGroupResults results.PhaseResults "
            "results.AxisSeries results.ScoreTable results.[!a-z]* results.*"
        ),
    ),
    "plots": (
        "Plots",
        "Figures of results (`plot(kind=)` draws them too), from arrays or from results.",
        "plotting.*",
    ),
    "many": (
        "Many at once",
        "Folds, seeds, settings, and how they compare.",
        (
            "CrossValidation CVBinding strategies.CVResults Ensemble Sweep SweepResults space.* "
            "ExperimentCollection learning_curve permutation_test_score strategies.*"
        ),
    ),
    "files": (
        "Files",
        "Look into `.mml` files; each class saves and loads its own.",
        "io.*",
    ),
    "tools": (
        "Reports and other tools",
        "Reports, model cards, experiment trackers, and experiments as scikit-learn estimators.",
        "write_report write_model_card sklearn.* tracking.*",
    ),
    "loops": (
        "Your own loops",
        "Streams of events, a loop that resumes, and a runner that calls listeners.",
        "streams.pipe streams.epoch_stream loop.Stream loop.* runner.Runner runner.* streams.*",
    ),
    "batches": (
        "Batches",
        "What callbacks, losses and models of yours are given while a phase runs.",
        "data.Batch* data.RoleData data.Sample* data.*",
    ),
    "migration": ("ModularML 1.0", "Find what scripts and files must change.", "migrate.*"),
    "errors": (
        "Errors",
        (
            "All derive from `ModularMLError` and from the fitting built-in exception. "
            "The :doc:`troubleshooting guide </troubleshooting>` has those that people meet most."
        ),
        "errors.ModularMLError errors.*",
    ),
}
"""Title, text and patterns of each group, in the order of the page."""


@dataclass
class Name:
    """A public name: where it is imported from, what it is, and where else it stands."""

    path: str
    value: Any
    also: list[str] = field(default_factory=list)

    @property
    def short(self) -> str:
        return self.path.removeprefix("modularml.")

    @property
    def is_seldom(self) -> bool:
        """Whether it is a warning, an error, a registry or a constant, which stand last."""
        if inspect.isclass(self.value):
            return issubclass(self.value, BaseException)
        return not inspect.isroutine(self.value)


def public_names() -> tuple[list[Name], dict[str, list[str]]]:
    """Return the names of the library, and by module those of other packages."""
    found: dict[int, Name] = {}
    foreign: dict[str, list[str]] = {}
    for module in filter(None, map(_module, MODULES)):
        for key in getattr(module, "__all__", []):
            value, path = getattr(module, key), f"{module.__name__}.{key}"
            if inspect.ismodule(value):
                continue
            if not getattr(value, "__module__", "modularml").startswith("modularml"):
                foreign.setdefault(module.__name__, []).append(key)
            elif id(value) in found:
                found[id(value)].also.append(path)
            else:
                found[id(value)] = Name(path, value)
    return list(found.values()), foreign


def grouped(names: list[Name]) -> dict[str, list[Name]]:
    """Return the names of each group, in the order of its patterns."""
    ranks = {slug: group[2].split() for slug, group in GROUPS.items()}
    places: dict[str, list[tuple[bool, int, str, Name]]] = {slug: [] for slug in GROUPS}
    for name in names:
        fits = [
            (slug, rank)
            for slug, patterns in ranks.items()
            for rank, pattern in enumerate(patterns)
            if fnmatchcase(name.short, pattern)
        ]
        if not fits:
            raise LookupError(f"{name.path} fits no group of GROUPS in docs/apipages.py")
        slug = next((s for s, rank in fits if ranks[s][rank] == name.short), fits[0][0])
        rank = min(rank for s, rank in fits if s == slug)
        places[slug].append((name.is_seldom, rank, name.short, name))
    return {
        slug: [row[-1] for row in sorted(rows, key=lambda row: row[:-1])]
        for slug, rows in places.items()
    }


def write(folder: Path) -> None:
    """Write the pages of all groups and names, and the overview that the index includes."""
    shutil.rmtree(folder, ignore_errors=True)  # pages of names that are gone must go too
    (folder / "generated").mkdir(parents=True)
    names, foreign = public_names()
    used = usages.find(folder.parents[1], [name.path for name in names])
    groups = grouped(names)
    for name in names:
        text = apimembers.page(name.path, name.value, [name.path for name in names])
        text += _also(name) + usages.section(used[name.path])
        (folder / "generated" / f"{name.path}.rst").write_text(text, "utf-8")
    for slug, members in groups.items():
        (folder / f"{slug}.rst").write_text(_group(slug, members, foreign), "utf-8")
    (folder / "overview.txt").write_text(_overview(groups), "utf-8")


def _module(name: str) -> Any:
    parent, _, _ = name.rpartition(".")
    if (parent and _module(parent) is None) or importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if error.name and error.name.split(".")[0] != "modularml":
            return None  # the framework that this module is about is not installed
        raise


def _also(name: Name) -> str:
    places = sorted({path.rpartition(".")[0] for path in name.also if path.rpartition(".")[0]})
    aliases = [
        path for path in name.also if path.rpartition(".")[2] != name.path.rpartition(".")[2]
    ]
    text = f"\nAlso in {', '.join(f'``{place}``' for place in places)}.\n" if places else ""
    return text + (f"\nAlso named {', '.join(f'``{a}``' for a in aliases)}.\n" if aliases else "")


def _group(slug: str, members: list[Name], foreign: dict[str, list[str]]) -> str:
    title, text, _ = GROUPS[slug]
    parts = [title, "=" * len(title), "", text, "", ".. currentmodule:: modularml", ""]
    parts += [".. autosummary::", "   :nosignatures:", "", *(f"   {m.short}" for m in members), ""]
    for module in sorted({m.path.rpartition(".")[0] for m in members} & set(foreign)):
        listed = ", ".join(f"``{key}``" for key in foreign[module])
        parts += [f"Of scikit-learn, under the same names in ``{module}``: {listed}.", ""]
    toc = [f"   {m.short} <generated/{m.path}>" for m in members]
    return "\n".join([*parts, ".. toctree::", "   :hidden:", "", *toc, ""])


def _overview(groups: dict[str, list[Name]]) -> str:
    parts = []
    for slug, members in groups.items():
        title, text, _ = GROUPS[slug]
        listed = ", ".join(f":py:obj:`{m.short} <{m.path}>`" for m in members)
        parts += [f":doc:`{title} <api/{slug}>`", f"   {text}", "", f"   {listed}", ""]
    return "\n".join(parts)
