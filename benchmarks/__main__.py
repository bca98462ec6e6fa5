"""``python -m benchmarks``: every number that speed is promised by, in one run."""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
from typing import Any

from benchmarks import environments
from benchmarks.compiled import compiled
from benchmarks.equality import equality
from benchmarks.files import files
from benchmarks.folds import folds
from benchmarks.gpu import gpu
from benchmarks.graph_ratios import graph_ratios
from benchmarks.imports import imports
from benchmarks.jobs import jobs
from benchmarks.loop_ratios import loop_ratios
from benchmarks.own_loops import own_loops
from benchmarks.records import records
from benchmarks.report import save, show, verdict
from benchmarks.rows import rows
from benchmarks.runtime import runtime
from benchmarks.samplers import samplers
from benchmarks.stacked import stacked
from benchmarks.sweeps import sweeps
from modularml.backends.torch_compiled import missing_compiler

PHASE_MS = 20.0
# What may stay: the losses logged for each batch (16 bytes each, 0.22 MiB in 45 epochs) and pages
# that the allocator keeps in reserve. A second copy of an epoch's gathered rows (1.22 MiB) may not.
GROWTH_MIB = 1.0


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "part",
        nargs="?",
        choices=["gpu"],
        help="training on a GPU, and nothing else",
    )
    parser.add_argument(
        "--device", default="cuda", help="of the part gpu, such as cuda:1; cpu where there is none"
    )
    parser.add_argument("--quick", action="store_true", help="small data, few rounds: a smoke test")
    parser.add_argument(
        "--opponents",
        nargs="*",
        metavar="NAME",
        choices=sorted(environments.OPPONENTS),
        help="install these (all where none is named) into .benchenvs and race them too",
    )
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="training loops named so, alone, or 'rows'"
    )
    return parser.parse_args()


def race_loops(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Race training loops."""
    rows = list(loop_ratios(quick=options.quick, only=options.only))
    show(
        "CPU time against the hand-written loop (every batch recorded; fused: by hand, fused Adam)",
        ("work", "ours/hand", "required", "aim", "verdict", "fused/hand", "hand, us/step", "ours"),
        [
            (
                *(row[key] for key in ("work", "ours", "required", "aim")),
                verdict(row),
                row["fused"],
                *(f"{row['us_a_step'][name]:.0f}" for name in ("hand", "ours")),
            )
            for row in rows
        ],
    )
    return rows


def race_tensorflow(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Race TensorFlow's loops, where it is installed."""
    if importlib.util.find_spec("tensorflow") is None:
        print("\nTensorFlow is not installed; its loops are not measured.")
        return []
    quick = ["--quick"] if options.quick else []
    rows: list[dict[str, Any]] = environments.run_isolated("tensorflow_ratios", *quick)  # type: ignore[assignment]
    show(
        "TensorFlow: CPU time against a hand-written `tf.function` loop (every batch recorded)",
        ("work", "ours/hand", "at most", "verdict", "Keras fit/hand", "hand, us/step", "ours"),
        [
            (
                *(row[key] for key in ("work", "value", "limit")),
                _verdict_of(row),
                row["fit"],
                *(f"{row['us_a_step'][name]:.0f}" for name in ("hand", "ours")),
            )
            for row in rows
        ],
    )
    return rows


def race_compiled(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Race compiled steps of torch, where there is a C++ compiler."""
    if (missing := missing_compiler()) is not None:
        print(f"\nCompiled steps of torch are not measured: {missing}.")
        return []
    rows = list(compiled(quick=options.quick))
    show(
        "torch, compile=True: CPU time against the hand-written loop, batches of 64",
        (
            "work",
            "ours/hand",
            "at most",
            "aim",
            "verdict",
            "plain/hand",
            "fused/hand",
            "compiling, s",
        ),
        [
            (
                *(row[key] for key in ("work", "ours", "limit", "aim")),
                verdict(row),
                *(row[key] for key in ("plain", "fused", "seconds")),
            )
            for row in rows
        ],
    )
    return rows


def weigh_costs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure what is paid once: imports, the start of a phase, memory."""
    quick = ["--quick"] if options.quick else []
    rows = imports(quick=options.quick)
    for name, (cpu, _) in environments.run_isolated("phase_cost", *quick).items():
        limit = None if name.startswith("torch") else PHASE_MS
        rows.append({"work": f"before the first step, {name} (ms)", "value": cpu, "limit": limit})
    rows += memory_rows(quick)
    rows = [{**row, "ok": row["limit"] is None or row["value"] <= row["limit"]} for row in rows]
    show_limits("Paid once (imports: times `import numpy, pyarrow`)", rows)
    return rows


def memory_rows(quick: list[str]) -> list[dict[str, Any]]:
    """Measure memory in several processes.

    The worst one counts: where the allocator puts a block differs from process to process, and
    growth that only some of them show would hide behind a median.
    """
    runs = [environments.run_isolated("memory", *quick) for _ in range(1 if quick else 5)]
    grown = [run["grown_mib"] for run in runs]
    name = f"memory gained from epoch 5 to {runs[0]['epochs']}, recording none (MiB)"
    return [
        {
            "work": f"{name}, worst of {len(runs)} processes",
            "value": max(grown),
            "limit": GROWTH_MIB,
        },
        {"work": f"{name}, median", "value": statistics.median(grown), "limit": None},
    ]


def check_equality(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare losses and weights with the hand-written loop's."""
    rows = equality(quick=options.quick)
    show_limits("Difference from the hand-written loop", rows)
    return rows


def race_opponents(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Race the other libraries that are installed, or that were asked for."""
    if options.opponents is not None:
        for name in options.opponents or environments.OPPONENTS:
            if not environments.install(name):
                print(f"{name} could not be installed")
    titles = [t for t, (name, _) in environments.RACES.items() if environments.is_installed(name)]
    rows = [environments.race(title, quick=options.quick) for title in titles]
    shown = [(r["opponent"], r["version"], *r["ratios"].values()) for r in rows if "ratios" in r]
    if shown:
        heading = "Other libraries on the MLP, each against the same loop in its own process"
        show(heading, ("library", "version", "batch 32", "64", "512"), shown)
    for row in rows:
        if "error" in row:
            print(f"  {row['opponent']} did not run: {row['error']}")
    if not titles:
        print("\nNo opponent is installed; `python -m benchmarks --opponents` installs them.")
    return rows


def race_on_gpu(options: argparse.Namespace) -> int:
    """Measure training on a device; no limit is set where none could be measured."""
    rows = gpu(options.device, quick=options.quick)
    show_limits(f"Training on {options.device!r} (ratios to loops by hand)", rows)
    found = {"quick": options.quick, "device": options.device, "gpu": rows}
    print(f"\n{save(found).relative_to(environments.ROOT)}")
    return 0


def show_limits(heading: str, rows: list[dict[str, Any]]) -> None:
    """Print values against limits."""
    cells = [(r["work"], r["value"], r["limit"], _verdict_of(r)) for r in rows]
    show(heading, ("what", "value", "at most", "verdict"), cells)


def main() -> int:
    """Run all and return 1 where a limit is missed; a quick run only holds equality."""
    options = arguments()
    if options.part == "gpu":
        return race_on_gpu(options)
    found = {} if options.only == "rows" else {"loops": race_loops(options)}
    if options.only in ("", "rows"):
        found["rows"] = rows(quick=options.quick)
        show_limits("Rows before a model sees them", found["rows"])
    if not options.only:
        found["compiled"] = race_compiled(options)
        found["tensorflow"] = race_tensorflow(options)
        found["costs"] = weigh_costs(options)
        found["jobs"] = jobs(quick=options.quick)
        show_limits("Whole jobs as processes (ours / by hand)", found["jobs"])
        found["equality"] = check_equality(options)
        found["own"] = own_loops(quick=options.quick)
        show_limits("Loops of one's own", found["own"])
        found["samplers"] = samplers(quick=options.quick)
        show_limits("Samplers against numpy and scipy by hand", found["samplers"])
        found["graphs"] = graph_ratios(quick=options.quick)
        show_limits("scikit-learn nodes, prediction, building (ours / by hand)", found["graphs"])
        found["folds"] = folds(quick=options.quick)
        show_limits("Cross-validation (ratios to hand-written loops)", found["folds"])
        found["stacked"] = stacked(quick=options.quick)
        show_limits("Trained as one (ratios to that many hand-written loops)", found["stacked"])
        found["sweeps"] = sweeps(quick=options.quick)
        show_limits("Sweeps (bookkeeping of a trial)", found["sweeps"])
        found["runtime"] = runtime(quick=options.quick)
        show_limits("The experiment runtime", found["runtime"])
        found["records"] = records(quick=options.quick)
        show_limits("Records of runs, and what holds them", found["records"])
        found["files"] = files(quick=options.quick)
        show_limits("Files against Arrow and safetensors by hand (wall time)", found["files"])
        if not options.quick or options.opponents is not None:
            found["opponents"] = race_opponents(options)
    print(f"\n{save({'quick': options.quick, **found}).relative_to(environments.ROOT)}")
    parts = (
        "loops",
        "rows",
        "compiled",
        "tensorflow",
        "costs",
        "jobs",
        "equality",
        "own",
        "runtime",
        "samplers",
        "graphs",
        "folds",
        "stacked",
        "sweeps",
        "records",
        "files",
    )
    binding = ("equality",) if options.quick else parts
    return 0 if all(row["ok"] for part in binding for row in found.get(part, [])) else 1


def _verdict_of(row: dict[str, Any]) -> str:
    return "for information" if row["limit"] is None else "ok" if row["ok"] else "MISSED"


if __name__ == "__main__":
    sys.exit(main())
