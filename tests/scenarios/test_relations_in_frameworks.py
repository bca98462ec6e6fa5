"""Two FeatureSets related by a key, with nodes of torch and of Keras, as long as a run lives."""

import numpy as np
import pytest
import torch

import modularml as mm
from modularml.callbacks import Callback
from tests.scenarios.test_relations import check_held_out, eval_loss, losses, one, sets, shuffled
from tests.worlds import QUIET


def times(backend, weight=1.0):
    """Return a layer that multiplies by a number, of a framework."""
    if backend == "torch":
        return one(weight)
    keras = pytest.importorskip("keras")
    start = keras.initializers.Constant(weight)
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer=start)
    return keras.Sequential([keras.Input((1,)), layer])


def wired(backend, windows, facts, how, order="WF", lr=0.0, weight=1.0):
    """Return an experiment that adds both inputs, related by references or by the merge node."""
    experiment = mm.Experiment.from_active_context("e", audit="off", seed=5)
    if how == "reference":
        facts, align = facts.reference(on="machine"), {}
    else:
        align = {"align_on": "machine"}
    a = mm.ModelNode("a", times(backend, weight), windows)
    b = mm.ModelNode("b", times(backend, weight), facts)
    pair = [a, b] if order == "WF" else [b, a]
    both = mm.ConcatNode(
        "both",
        pair,
        concat_axis=0,
        concat_axis_targets="first" if order == "WF" else "last",
        **align,
    )
    head = mm.ModelNode("h", adds(backend), both)
    opt_kwargs = {"lr" if backend == "torch" else "learning_rate": lr}
    optimizer = mm.Optimizer("sgd", opt_kwargs=opt_kwargs, backend=backend)
    mm.ModelGraph([*pair, both, head], optimizer)
    return experiment


def adds(backend):
    """Return a layer that adds its two inputs."""
    if backend == "torch":
        layer = torch.nn.Linear(2, 1, bias=False)
        torch.nn.init.ones_(layer.weight)
        return layer
    keras = pytest.importorskip("keras")
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    return keras.Sequential([keras.Input((2,)), layer])


def phase_of(n_epochs=2, callbacks=(), **kwargs):
    return mm.TrainPhase.from_split(
        "t",
        split="train",
        sampler=shuffled(),
        losses=losses(),
        n_epochs=n_epochs,
        callbacks=list(callbacks),
        **kwargs,
    )


backends = pytest.mark.parametrize("backend", ["torch", "tensorflow"])
ways = pytest.mark.parametrize("how", ["reference", "merge"])


@backends
@ways
@pytest.mark.parametrize("order", ["WF", "FW"])
def test_every_phase_pairs_rows_by_the_key(backend, how, order):
    exp = wired(backend, *sets(), how, order)
    watch = mm.Evaluation.from_split("v", split="val", losses=losses(), metrics=["mse"])
    results = exp.run_phase(phase_of(callbacks=[watch]), **QUIET)
    assert results.to_pandas().to_numpy().max() < 1e-10
    assert eval_loss(exp) < 1e-10


@backends
@ways
def test_early_stopping_watches_pairs_that_belong_together(backend, how):
    windows, facts = sets()
    exp = wired(backend, windows, facts, how, "FW", lr=0.05, weight=0.5)
    loss = mm.EvalLossMetric(loss=losses()[0])
    watch = mm.Evaluation.from_split("v", split="val", metrics=[loss])
    stop = mm.EarlyStopping(monitor="val_loss", patience=2, restore_best=True)
    results = exp.run_phase(phase_of(6, [watch, stop]), **QUIET)
    names = list(facts.get_tags()["machine"])
    rows = windows["val"]
    f = facts.get_features("dict_numpy")["f"][[names.index(m) for m in rows.get_tags()["machine"]]]
    x, y = rows.get_features("dict_numpy")["x"], rows.get_targets("dict_numpy")["y"]
    graph = exp.model_graph
    w_a, w_b, w_h = (next(iter(graph.get_node(n).model.get_weights().values())) for n in "abh")
    w_f, w_x = w_h.reshape(-1)
    by_hand = np.mean((w_x * w_a.item() * x + w_f * w_b.item() * f - y) ** 2)
    curve = results.to_pandas()["val_loss"]
    assert curve.min() == pytest.approx(by_hand, rel=1e-4)
    assert curve.iloc[-1] < curve.iloc[0]


@backends
@ways
def test_folds_pair_rows_by_the_key(backend, how):
    windows, facts = sets()
    exp = wired(backend, windows, facts, how)
    exp.model_graph.build()
    exp.model_graph.freeze(["a", "b"])  # they keep their weights; the head learns to add
    phase = mm.TrainPhase.from_split(
        "t", split="train", sampler=shuffled(), losses=losses(), n_epochs=150
    )
    exp.model_graph.optimizer.opt_kwargs.update(
        {"lr" if backend == "torch" else "learning_rate": 0.2}
    )
    bindings = [mm.CVBinding(s, ["train", "val"], group_by="machine") for s in (windows, facts)]
    cv = mm.CrossValidation(bindings=bindings, phase=phase, n_folds=2)
    check_held_out(cv.run(show_fold_progress=False, **QUIET), windows)


class Interrupts(Callback):
    """Ends a run in the middle of an epoch, once."""

    on = False

    def on_batch_end(self, *, exec_ctx, **facts):
        if Interrupts.on and (exec_ctx.epoch_idx, exec_ctx.batch_idx) == (1, 2):
            Interrupts.on = False
            raise KeyboardInterrupt


@backends
@ways
def test_a_run_that_was_stopped_goes_on_bit_for_bit(backend, how, tmp_path):
    found = []
    for stopped in (False, True):
        kept = mm.Checkpointing(mode="disk", save_on="batch_end", directory=tmp_path / str(stopped))
        for resume in (None, "auto") if stopped else (None,):
            with mm.ExperimentContext().activate():
                exp = wired(backend, *sets(), how, "FW", lr=0.05, weight=0.5)
                Interrupts.on = stopped and resume is None
                watch = mm.Evaluation.from_split("v", split="val", losses=losses(), metrics=["mse"])
                phase = phase_of(3, [watch, Interrupts()], checkpointing=kept)
                exp.set_checkpoint_dir(tmp_path / str(stopped))
                if Interrupts.on:
                    with pytest.raises(KeyboardInterrupt):
                        exp.run_phase(phase, **QUIET)
                    continue
                results = exp.run_phase(phase, resume=resume, **QUIET)
                weights = [exp.model_graph.get_node(n).model.get_weights() for n in "abh"]
                found.append((weights, results.to_pandas()))
    (ours, curve), (theirs, again) = found
    for mine, other in zip(ours, theirs, strict=True):
        assert all(map(np.array_equal, mine.values(), other.values()))
    np.testing.assert_array_equal(curve.to_numpy(), again.to_numpy())


@backends
@ways
def test_rows_of_both_sets_are_predicted_after_save_and_load(backend, how, tmp_path):
    windows, facts = sets()
    exp = wired(backend, windows, facts, how, "FW")
    exp.run_phase(phase_of(1), **QUIET)
    rows, truth = windows["val"], windows["val"].get_targets("dict_numpy")["y"]
    frames = {"W": rows.to_pandas(), "F": facts["val"].to_pandas()}
    frames = {
        label: frame.rename(columns=lambda name: name.split(".")[1] if "." in name else name)
        for label, frame in frames.items()
    }
    given = {"views": {"W": rows, "F": facts["val"]}, "frames": frames}
    want = {k: exp.predict(v)[:, 0] for k, v in given.items()}
    for found in want.values():
        np.testing.assert_allclose(found, truth, atol=1e-5)
    for path in (exp.save(tmp_path / "e"), exp.model_graph.save(tmp_path / "g")):
        with mm.ExperimentContext().activate():
            whole = path.name.endswith(".exp.mml")
            again = (mm.Experiment if whole else mm.ModelGraph).load(path)
            np.testing.assert_array_equal(again.predict(frames)[:, 0], want["frames"])
            if whole:
                views = {k: again.ctx.get_node(label=k)["val"] for k in "WF"}
                np.testing.assert_array_equal(again.predict(views)[:, 0], want["views"])
