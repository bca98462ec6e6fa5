"""Features in pairs, each case held against the same thing written by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge

import modularml as mm
from modularml.callbacks import Callback
from modularml.errors import ScalerError
from tests.combined_worlds import (
    BATCH,
    GRADES,
    PARTS,
    columns_of,
    graph_of,
    hand,
    heads_of,
    losses_of,
    prepare,
    raw,
    sets,
    train_by_hand,
    weight_column,
)
from tests.pairwise import covering, name_of, pairs_of
from tests.worlds import QUIET

TABLE = {
    "framework": ["torch", "keras"],
    "run": ["whole", "resumed", "loaded", "folds"],
    "prep": ["raw", "standard", "minmax", "pca", "impute"],
    "target": ["raw", "standard", "chain"],
    "category": ["none", "onehot", "ordinal", "target"],
    "padding": ["full", "masked"],
    "weights": ["none", "samples", "classes"],
    "heads": ["reg", "cls", "both"],
    "labels": ["numbers", "text"],
    "sets": ["one", "joined"],
    "frozen": ["free", "leg"],
    "accumulate": ["single", "several"],
    "clip": ["none", "norm", "value"],
    "optimizer": ["sgd", "adam"],
    "order": ["rows", "shuffled", "dropping"],
    "dtype": ["single", "double"],
}
SILENT = {"show_fold_progress": False, **QUIET}


def allowed(case):
    return not (
        (case["padding"] == "masked" and case["prep"] in ("pca", "impute"))
        or (case["labels"] == "text" and case["heads"] == "reg")
    )


CASES = covering(TABLE, allowed, seed=1)


class EndsOfCombinations(Callback):
    """EndsOfCombinations a run with an error after some batches."""

    def __init__(self):
        super().__init__("ends")
        self.ran, self.at = 0, -1

    def on_batch_end(self, **facts):
        self.ran += 1
        if self.ran == self.at:
            raise KeyError("stopped")


def world(case, data, n_epochs=2):
    """Return an experiment whose plan is to train, its samples and the callback that ends it."""
    fs, facts = sets(case, data)
    graph_of(case, fs, facts)
    losses, ends = losses_of(case), EndsOfCombinations()
    metrics = [mm.EvalLossMetric(loss=own, name=f"val_{own.label}") for own in losses]
    watch = mm.Evaluation.from_split(
        "watch", split="val", losses=losses, batch_size=4, metrics=metrics
    )
    sampler = mm.SimpleSampler(
        batch_size=BATCH, shuffle=case["order"] == "shuffled", seed=5,
        drop_last=case["order"] == "dropping",
    )  # fmt: skip
    phase = mm.TrainPhase.from_split(
        "train", split="train", sampler=sampler, losses=losses, n_epochs=n_epochs,
        accumulate={"single": 1, "several": 2}[case["accumulate"]], callbacks=[watch, ends],
    )  # fmt: skip
    exp = mm.Experiment.from_active_context("combined", audit="off")
    exp.execution_plan.add_phase(phase)
    return exp, fs, ends


def batches_of(results, case, fs, n_epochs=2):
    """Return the rows of each batch of each epoch that was recorded."""
    place = {name: i for i, name in enumerate(fs.get_sample_uuids())}
    head = next(iter(heads_of(case)))
    found = [[] for _ in range(n_epochs)]
    for (epoch, _), ids in results.tensors(head, "sample_uuids").items():
        found[epoch].append(np.array([place[i] for i in ids]))
    return found


def check_batches(epochs, case, train):
    """Hold the rows of batches against what a sampler ought to give."""
    for batches in epochs:
        rows = np.concatenate(batches)
        if case["order"] == "shuffled":
            assert (rows != np.sort(rows)).any()
            rows = np.sort(rows)
        n = len(train) // BATCH * BATCH if case["order"] == "dropping" else len(train)
        np.testing.assert_array_equal(rows, train[:n])
        assert {len(b) for b in batches[:-1]} == {BATCH}


def close(found, wanted, tol=1e-5):
    np.testing.assert_allclose(found, wanted, rtol=tol, atol=tol)


def check_logged(results, wanted):
    """Hold what was logged after each epoch against by hand."""
    frame = results.to_pandas()
    for epoch, values in enumerate(wanted):
        for name, value in values.items():
            close(frame[name].iloc[epoch], value)


def check_numbers(exp, case, data, model, prepared, rows, split):
    """Hold what an experiment tells of rows against by hand, by every road."""
    columns = columns_of(case, data)
    wanted = model.outputs(prepared, rows)
    own = {head: prepared.own_units(head, out) for head, out in wanted.items()}
    losses = model.values(prepared, rows)
    with exp.ctx.activate():
        fs = exp.ctx.get_node(label="data")
        phase = mm.EvalPhase.from_split("e", split=split, losses=losses_of(case), batch_size=4)
        results = exp.run_phase(phase, **QUIET)
        view = fs[split]
    np.testing.assert_array_equal(view.indices, rows)
    new = {k: columns[k][rows] for k in ("kind", "x", *(["mask"] if "mask" in columns else []))}
    frame = pd.DataFrame({k: list(v) for k, v in new.items()}, index=[f"r{i}" for i in rows])
    doubles = new | {"x": new["x"].astype("f8")}
    for head, out in own.items():
        if case["target"] != "raw" or head == "cls":
            close(exp.predict(view, node=head, unscale=False), wanted[head])
        close(exp.predict(view, node=head), out)
        close(exp.predict(view, node=head, batch_size=3), out)
        for rows_of, given in (
            (slice(None), frame), (slice(None), doubles), (slice(1), frame.iloc[:1]),
            (slice(None, None, -1), frame.iloc[::-1]),
        ):  # fmt: skip
            asked = given
            if case["sets"] == "joined":
                own_rows = dict(given) | {"machine": data["machine"][rows][rows_of]}
                facts = pd.DataFrame({"f": list(data["f"]), "machine": data["f_machine"]})
                asked = {"facts": facts.iloc[::-1], "data": own_rows}
            close(exp.predict(asked, node=head), out[rows_of])
        table = results.to_pandas(head)
        close(table.filter(like="prediction").to_numpy(), out)
        parts = results.tensors(head, "outputs", unscale=True, fmt="numpy").values()
        close(np.concatenate([np.asarray(p).reshape(-1, out.shape[1]) for p in parts]), out)
        close(results.aggregated_losses(head)[head], losses[head])
        if head == "reg":
            close(table["target"], data["y"][rows])
            found = results.scores(["mae", "r2"], head).set_index("score")["value"]
            true = data["y"][rows].astype("f8")
            close(found["mae"], np.abs(out[:, 0] - true).mean())
            close(
                found["r2"], 1 - ((out[:, 0] - true) ** 2).sum() / ((true - true.mean()) ** 2).sum()
            )
        else:
            names = columns["c"] if case["labels"] == "text" else data["c"]
            assert list(results.to_pandas(head)["target"]) == list(names[rows])
            score = results.scores(["accuracy"], head)["value"][0]
            hits = out.argmax(axis=1) == prepared.targets["cls"][rows]
            assert score == pytest.approx(hits.mean())
            if case["labels"] == "text":
                decoded = exp.predict(view, node=head, decode=True).ravel()
                assert list(decoded) == [np.unique(GRADES)[i] for i in out.argmax(axis=1)]
    return own


def run_whole(case, data, tmp_path):
    exp, fs, _ = world(case, data)
    results = exp.run(**QUIET).get_train_result("train")
    return exp, batches_of(results, case, fs), [results]


def run_resumed(case, data, tmp_path):
    for resume, at in ((None, 6), ("auto", -1)):
        with mm.ExperimentContext().activate():
            exp, fs, ends = world(case, data)
            kept = mm.Checkpointing(mode="disk", save_on="batch_end")
            exp.execution_plan.get_phase("train").set_checkpointing(kept)
            exp.set_checkpoint_dir(tmp_path)
            ends.at = at
            if resume is None:
                with pytest.raises(KeyError, match="stopped"):
                    exp.run(**QUIET)
                continue
            results = exp.run(resume="auto", **QUIET).get_train_result("train")
            assert ends.ran < len(results.execution_contexts())
    return exp, batches_of(results, case, fs), [results]


def run_loaded(case, data, tmp_path):
    with mm.ExperimentContext().activate():
        exp, fs, _ = world(case, data, n_epochs=1)
        first = exp.run(**QUIET).get_train_result("train")
        batches = batches_of(first, case, fs, 1)
        exp.execution_plan.get_phase("train").callbacks.pop()
        path = exp.save(tmp_path / "e")
    with mm.ExperimentContext().activate():
        exp = mm.Experiment.load(path)
        second = exp.run(**QUIET).get_train_result("train")
        fs = exp.ctx.get_node(label="data")
        return exp, batches + batches_of(second, case, fs, 1), [first, second]


def marked(case):
    """Return a case under its name; those that take long are marked slow."""
    heavy = case["framework"] == "keras" or case["run"] == "folds"
    return pytest.param(case, id=name_of(case, TABLE), marks=[pytest.mark.slow] * heavy)


@pytest.mark.parametrize("case", [marked(case) for case in CASES])
def test_gradients(case, tmp_path):
    pytest.importorskip({"torch": "torch", "keras": "tensorflow"}[case["framework"]])
    data = raw(case)
    if case["run"] == "folds":
        check_folds(case, data)
        return
    run = {"whole": run_whole, "resumed": run_resumed, "loaded": run_loaded}[case["run"]]
    exp, epochs, results = run(case, data, tmp_path)
    check_batches(epochs, case, PARTS["train"])
    model, prepared = hand(case), prepare(case, data, PARTS["train"])
    wanted = train_by_hand(model, prepared, epochs, PARTS["val"])
    if len(results) == 1:
        check_logged(results[0], wanted)
    else:
        for own, some in zip(results, wanted, strict=True):
            check_logged(own, [some])
    with exp.ctx.activate():
        check_numbers(exp, case, data, model, prepared, PARTS["test"], "test")


PLAIN = {name: options[0] for name, options in TABLE.items()}


@pytest.mark.slow
def test_folds_on_workers():
    chosen = {"prep": "standard", "target": "chain", "category": "onehot", "padding": "masked"}
    chosen |= {"weights": "samples", "heads": "both", "labels": "text", "sets": "joined"}
    case = PLAIN | chosen | {"accumulate": "several", "clip": "norm", "order": "shuffled"}
    check_folds(case, raw(case), n_jobs=2)


@pytest.mark.parametrize(("prep", "message"), [("pca", "several steps"), ("impute", "padd")])
def test_steps_that_cannot_leave_padding_alone_are_refused(prep, message):
    case = PLAIN | {"prep": prep, "padding": "masked"}
    with pytest.raises(ScalerError, match=message):
        sets(case, raw(case))


def test_the_table_is_covered():
    held = set().union(*map(pairs_of, CASES))
    rng = np.random.default_rng(0)
    for _ in range(300):
        case = {name: str(rng.choice(options)) for name, options in TABLE.items()}
        assert not allowed(case) or pairs_of(case) <= held


@pytest.mark.parametrize("weights", ["none", "samples", "classes"])
@pytest.mark.parametrize("run", ["whole", "loaded", "folds"])
@pytest.mark.parametrize("inputs", ["x", "kind and x"])
def test_estimators(weights, run, inputs, tmp_path):
    """A ridge on scaled columns, on the target's scale, weighted, in folds and after a load."""
    case = PLAIN | {"prep": "standard", "target": "chain", "weights": weights, "category": "onehot"}
    data = raw(case)
    fs, _ = sets(case, data)
    heads = fs.reference(features="x")
    if inputs != "x":
        refs = [fs.reference(features="kind"), heads]
        heads = mm.ConcatNode("both", refs, flatten=True, concat_axis_targets="first")
    node = mm.ModelNode("reg", Ridge(alpha=0.3), heads, targets="y")
    mm.ModelGraph([node] if inputs == "x" else [heads, node])
    loss = mm.AppliedLoss(
        mm.Loss("mse"), "reg", ["outputs", "y"], sample_weight=weight_column(case), label="reg"
    )
    phase = mm.FitPhase.from_split("fit", split="train", losses=[loss])
    exp = mm.Experiment.from_active_context("combined", audit="off")
    exp.execution_plan.add_phase(phase)

    def by_hand(train, rows):
        prepared = prepare(case, data, train)
        names = ["x"] if inputs == "x" else ["kind", "x"]
        table = np.concatenate([prepared.inputs[k] for k in names], axis=1)
        made = Ridge(alpha=0.3)
        made.fit(table[train], prepared.targets["reg"][train, 0], prepared.weights[train])
        return prepared.own_units("reg", made.predict(table[rows])[:, None])

    if run == "folds":
        binding = mm.CVBinding(fs, ["train", "val"])
        cv = mm.CrossValidation(bindings=binding, n_folds=2, seed=3)
        held, ids = cv.run(**SILENT).out_of_fold("reg"), fs.get_sample_uuids()
        for fold in cv.folds:
            sides = fold.sides["data"]
            found = held["prediction"].loc[[ids[i] for i in sides.val]]
            close(found, by_hand(sides.train, sides.val)[:, 0])
        return
    exp.run(**QUIET)
    if run == "loaded":
        path = exp.save(tmp_path / "e")
        with mm.ExperimentContext().activate():
            exp = mm.Experiment.load(path)
    wanted = by_hand(PARTS["train"], PARTS["test"])
    columns = {k: data[k][PARTS["test"]] for k in ("kind", "x")}
    close(exp.predict(columns, node="reg").reshape(-1, 1), wanted)


def check_folds(case, data, **kwargs):
    _, fs, _ = world(case, data)
    bindings = mm.CVBinding(fs, ["train", "val"])
    cv = mm.CrossValidation(bindings=bindings, n_folds=2, seed=3, **kwargs)
    found = cv.run(**SILENT)
    held = {head: found.out_of_fold(head) for head in heads_of(case)}
    ids = fs.get_sample_uuids()
    pool = np.sort(np.concatenate([PARTS["train"], PARTS["val"]]))
    np.testing.assert_array_equal(
        np.sort(np.concatenate([f.sides["data"].val for f in cv.folds])), pool
    )
    for fold in cv.folds:
        sides, own = fold.sides["data"], found.get_experiment(fold.label)
        np.testing.assert_array_equal(np.sort(np.r_[sides.train, sides.val]), pool)
        results = found.get_fold(fold.label).get_train_result("train")
        epochs = batches_of(results, case, own.ctx.get_node(label="data"))
        check_batches(epochs, case, sides.train)
        model, prepared = hand(case), prepare(case, data, sides.train)
        check_logged(results, train_by_hand(model, prepared, epochs, sides.val))
        for rows, split in ((sides.val, "val"), (PARTS["test"], "test")):
            with own.ctx.activate():
                outputs = check_numbers(own, case, data, model, prepared, rows, split)
            if split == "val":
                for head, out in outputs.items():
                    some = held[head].loc[[ids[i] for i in rows]].filter(like="prediction")
                    close(some.to_numpy(), out)
