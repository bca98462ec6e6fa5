"""Weights know their rows: through new splits, files, further training, and in other sets."""

import warnings

import numpy as np
import pytest
from sklearn.linear_model import Ridge

import modularml as mm
from modularml.audit import AuditWarning
from modularml.errors import AuditError
from tests.worlds import QUIET, eval_phase, experiment, featureset, graph_of, mlp, train_phase

N = 60


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(N, 6)).astype(np.float32), rng.normal(size=N).astype(np.float32)


def trained(audit="warn"):
    """Return a set, a graph and an experiment, trained on the rows of 'train'."""
    fs = featureset(*arrays())
    fs.split_random({"train": 0.5, "test": 0.5}, seed=0)
    graph = graph_of(fs, mlp())
    exp = experiment(audit=audit)
    exp.run_phase(train_phase(graph, split="train"), **QUIET)
    return fs, graph, exp


def split_again(fs):
    fs.clear_splits()
    fs.split_random({"train": 0.5, "test": 0.5}, seed=1)


def test_ids_are_those_of_the_rows_trained_on():
    fs, graph, _ = trained()
    wanted = {str(i) for i in fs["train"].get_sample_uuids()}
    assert set(graph.learned_from.sample_ids) == wanted
    assert graph.learned_from.counts == {fs.label: N // 2}
    assert not np.intersect1d(graph.learned_from.known(fs), fs["test"].indices).size
    node = next(iter(graph.nodes.values()))
    assert set(node.learned_from.sample_ids) == wanted
    node.reset_weights()
    assert not graph.learned_from


def test_honest_evaluations_are_silent():
    fs, graph, exp = trained("error")
    for split in ("test", "train", None):
        exp.run_phase(eval_phase(graph, split=split))
    graph.predict(fs)
    graph.predict(fs["test"])


def test_a_split_made_anew_is_said_once_with_count_and_ids():
    fs, graph, exp = trained()
    learned = set(fs["train"].indices.tolist())
    split_again(fs)
    both = [i for i in fs["test"].indices.tolist() if i in learned]
    first = str(fs.get_sample_uuids()[min(both)])
    with pytest.warns(AuditWarning, match=f"^{len(both)} of {N // 2} rows.*{first}") as caught:
        exp.run_phase(eval_phase(graph, split="test"))
    assert caught[0].filename == __file__
    exp.run_phase(eval_phase(graph, split="test"))
    with pytest.warns(AuditWarning, match="measure memorization"):
        graph.predict(fs["test"])
    graph.predict(fs["test"])


def test_error_refuses_and_new_weights_are_free():
    fs, graph, exp = trained("error")
    split_again(fs)
    with pytest.raises(AuditError, match="learned from"):
        exp.run_phase(eval_phase(graph, split="test"))
    graph.build(force=True)
    exp.run_phase(eval_phase(graph, split="test"))


def test_further_training_adds_rows_and_a_preview_does_not():
    _fs, graph, exp = trained("off")
    exp.preview_phase(train_phase(graph, split="test"), **QUIET)
    assert len(graph.learned_from) == N // 2
    exp.run_phase(train_phase(graph, split="test"), **QUIET)
    assert len(graph.learned_from) == N


def test_frozen_nodes_learn_nothing_and_estimators_do():
    fs = featureset(*arrays())
    fs.split_random({"train": 0.5, "test": 0.5}, seed=0)
    node = mm.ModelNode("ridge", Ridge(), fs)
    graph = mm.ModelGraph([node])
    exp = experiment()
    exp.run_phase(mm.FitPhase.from_split("fit", split="train"))
    assert graph.learned_from.counts == {fs.label: N // 2}
    assert node.is_frozen


def test_scalers_count():
    fs = featureset(*arrays())
    fs.split_random({"train": 0.5, "test": 0.5}, seed=0)
    fs.fit_transform("StandardScaler", domain="features", fit_to_split="train")
    graph = graph_of(fs, mlp())
    assert graph.learned_from.counts == {fs.label: N // 2}
    assert not next(iter(graph.nodes.values())).learned_from


@pytest.mark.parametrize("kind", ["graph", "experiment", "checkpoint"])
def test_files_keep_it(kind, tmp_path):
    _, graph, exp = trained("off")
    ids = set(graph.learned_from.sample_ids)
    if kind == "checkpoint":
        path = graph.save_checkpoint(tmp_path / "g")
        graph.build(force=True)
        assert not graph.learned_from
        assert set(graph.restore_checkpoint(path).learned_from.sample_ids) == ids
        return
    saved = graph if kind == "graph" else exp
    path = saved.save(tmp_path / "saved")
    with mm.ExperimentContext().activate():
        loaded = type(saved).load(path)
        again = loaded if kind == "graph" else loaded.model_graph
        assert set(again.learned_from.sample_ids) == ids


def test_the_same_rows_under_other_ids_are_known_after_load(tmp_path):
    _, graph, _ = trained("off")
    path = graph.save(tmp_path / "g")
    x, y = arrays()
    mix = np.random.default_rng(3).permutation(N)
    with mm.ExperimentContext().activate():
        other = featureset(x[mix].astype(np.float64), y[mix])
        other.split_random({"train": 0.5, "test": 0.5}, seed=2)
        loaded = mm.ModelGraph.load(path)
        known = loaded.learned_from.known(other)
        assert len(known) == N // 2
        with pytest.warns(AuditWarning, match="rows of split 'test'"):
            loaded.predict(other["test"])
    with mm.ExperimentContext().activate(), warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh = featureset(*arrays(seed=9))
        fresh.split_random({"train": 0.5, "test": 0.5}, seed=2)
        mm.ModelGraph.load(path).predict(fresh["test"])


def test_weights_taken_over_bring_their_rows():
    _fs, graph, _ = trained()
    node = next(iter(graph.nodes.values()))
    with mm.ExperimentContext().activate():
        new = graph_of(featureset(*arrays()), mlp())
        new.build()
        next(iter(new.nodes.values())).load_weights(node)
        assert new.learned_from.sample_ids == graph.learned_from.sample_ids


def test_a_file_holds_a_bit_a_row_and_few_hashes(tmp_path):
    n = 100_000
    x = np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32)
    fs = featureset(x, x[:, 0])
    graph = graph_of(fs, mlp(2))
    before = graph.save(tmp_path / "before").stat().st_size
    graph.learn_from([fs.to_view()], None)
    after = graph.save(tmp_path / "after").stat().st_size
    assert after - before < 110_000


def test_a_chain_of_fine_tuning_knows_the_rows_of_every_link(tmp_path):
    """Pretrained on A, loaded where A is not, trained on B, loaded where neither is."""
    _, graph, _ = trained("off")
    first = graph.save(tmp_path / "first")
    with mm.ExperimentContext().activate():
        loaded = mm.ModelGraph.load(first)
    with mm.ExperimentContext().activate():
        other = featureset(*arrays(seed=4))
        other.split_random({"train": 0.5, "test": 0.5}, seed=0)
        other_train = other["train"].indices
        graph = graph_of(other, mlp())
        graph.build()
        node = next(iter(graph.nodes.values()))
        node.load_weights(next(iter(loaded.nodes.values())))
        experiment(audit="off").run_phase(train_phase(graph, split="train"), **QUIET)
        assert len(graph.learned_from) == N
        second = graph.save(tmp_path / "second")
    for seed, learned in ((0, None), (4, other_train)):
        with mm.ExperimentContext().activate():
            x, y = arrays(seed=seed)
            again = featureset(x[::-1].astype(np.float64), y[::-1])  # ids differ, values do not
            again.split_random({"left": 0.5, "test": 0.5}, seed=5)
            last = mm.ModelGraph.load(second)
            known = last.learned_from.known(again)
            assert len(known) == N // 2
            if learned is not None:
                np.testing.assert_array_equal(known, np.sort(N - 1 - learned))
            count = np.isin(again["test"].indices, known).sum()
            with pytest.warns(AuditWarning, match=f"^{count} of {N // 2} rows of split 'test'"):
                last.predict(again["test"])


def test_a_frozen_encoder_brings_its_rows_into_another_graph():
    fs, graph, _ = trained("off")
    encoder = next(iter(graph.nodes.values()))
    rows = fs["train"].indices
    with mm.ExperimentContext().activate():
        again = featureset(*arrays())
        again.add_split(again.take(rows, label="test"))
        again.add_split(again.take(np.setdiff1d(np.arange(N), rows), label="train"))
        first = mm.ModelNode("encoder", mlp(), again)
        head = mm.ModelNode("net", mlp(1), first)
        whole = mm.ModelGraph([first, head], optimizer=mm.Optimizer("sgd", opt_kwargs={"lr": 0.1}))
        whole.build()
        first.load_weights(encoder)
        first.freeze()
        exp = experiment(audit="error")
        with pytest.raises(AuditError, match="node 'encoder' learned from"):
            exp.run_phase(eval_phase(whole, split="test"))
        assert not head.learned_from


@pytest.mark.parametrize("kind", ["graph", "checkpoint"])
def test_estimators_know_their_rows_after_load(kind, tmp_path):
    fs = featureset(*arrays())
    fs.split_random({"train": 0.5, "test": 0.5}, seed=0)
    graph = mm.ModelGraph([mm.ModelNode("net", Ridge(), fs)])
    exp = experiment(audit="error")
    exp.run_phase(mm.FitPhase.from_split("fit", split="train"))
    if kind == "checkpoint":
        path = graph.save_checkpoint(tmp_path / "g")
        graph.build(force=True)
        graph.restore_checkpoint(path)
    else:
        path = graph.save(tmp_path / "g")
    split_again(fs)
    if kind == "checkpoint":
        with pytest.raises(AuditError, match="rows of split 'test'"):
            exp.run_phase(eval_phase(graph, split="test"))
        return
    with mm.ExperimentContext().activate():
        x, y = arrays()
        again = featureset(x, y)
        again.split_random({"train": 0.5, "test": 0.5}, seed=1)
        with pytest.warns(AuditWarning, match="rows of split 'test'"):
            mm.ModelGraph.load(path).predict(again["test"])


def test_each_fold_knows_its_own_rows():
    fs = featureset(*arrays())
    fs.split_random({"train": 0.8, "val": 0.2}, seed=0)
    graph = graph_of(fs, mlp())
    exp = experiment(audit="off")
    exp.execution_plan.add_phase(train_phase(graph, split="train"))
    binding = mm.CVBinding(fs, ["train", "val"])
    results = mm.CrossValidation(bindings=binding, n_folds=3, experiment=exp).run()
    assert not graph.learned_from
    for label in results.fold_labels:
        own = results.get_experiment(label)
        rows = next(iter(own.ctx.available_featuresets.values()))
        known = own.model_graph.learned_from.known(rows)
        np.testing.assert_array_equal(known, np.sort(rows["train"].indices))
        assert not np.isin(rows["val"].indices, known).any()


def test_predicting_by_the_experiment_warns_too():
    fs, _, exp = trained()
    split_again(fs)
    with pytest.warns(AuditWarning, match="measure memorization"):
        exp.predict(fs["test"])
