"""Class weights of losses, held against scikit-learn's and loops by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

import modularml as mm
from modularml.errors import ConfigError, DataError, UnknownNameError
from tests.worlds import (
    QUIET,
    assert_equal_weights,
    by_hand,
    eval_phase,
    experiment,
    graph_of,
    mlp,
    train,
    twin,
)

pytestmark = pytest.mark.filterwarnings("ignore::modularml.strategies.SelectionWarning")
N = 60


def table(n: int = N, dtype="i8"):
    """Return features, three unequal classes and weights of the samples."""
    rng = np.random.default_rng(0)
    c = np.array([0] * (n // 2) + [1] * (n // 3) + [2] * (n - n // 2 - n // 3))[rng.permutation(n)]
    x = (rng.normal(size=(n, 6)) + c[:, None]).astype("f4")
    return x, c.astype(dtype), rng.integers(1, 4, n) / 2.0


def rows(x, c, w, label="data", **tags):
    columns = {f"x{i}": x[:, i] for i in range(x.shape[1])}
    features = list(columns)
    columns |= {"c": c, "w": w, **tags}
    return mm.FeatureSet.from_dict(label, columns, features, ["c"], ["w", *tags])


def entropy(class_weight="balanced", **kwargs):
    inputs = kwargs.pop("inputs", ["outputs", "targets"])
    return mm.AppliedLoss(
        mm.Loss("cross_entropy"), "net", inputs, class_weight=class_weight, **kwargs
    )


def balanced(c):
    classes = np.unique(c)
    weights = compute_class_weight("balanced", classes=classes, y=c)
    return dict(zip(classes.tolist(), weights.tolist(), strict=True))


@pytest.mark.parametrize("given", ["balanced", {0: 1.0, 1: 0.5, 2: 4.0}])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_equals_torchs_own_weights(given, accumulate):
    x, c, w = table()
    net = mlp(out=3)
    hand = twin(net)
    results = train(graph_of(rows(x, c, w), net), [entropy(given)], n_epochs=2,
                    accumulate=accumulate)  # fmt: skip
    by_class = balanced(c) if given == "balanced" else given
    loss = nn.CrossEntropyLoss(weight=torch.tensor([by_class[i] for i in range(3)]).float())
    if accumulate == 1:
        by_hand(hand, lambda p: torch.optim.SGD(p, lr=0.05), x, c, loss=loss)
    else:  # 16-row batches by two are 32-row batches
        by_hand(hand, lambda p: torch.optim.SGD(p, lr=0.05), x, c, loss=loss, batch_size=32)
    assert_equal_weights(net, hand, atol=1e-6)
    assert np.isfinite(list(results.metrics().where(name="train_loss").values())).all()


def test_they_multiply_sample_weights_and_leave_evaluations_alone():
    x, c, w = table()
    net = mlp(out=3)
    hand = twin(net)
    graph = graph_of(rows(x, c, w), net)
    loss = entropy(sample_weight="w")
    train(graph, [loss], n_epochs=2)
    weights = torch.tensor([balanced(c)[k] for k in c.tolist()]) * torch.tensor(w)
    data = torch.tensor(x), torch.tensor(c), weights.float()
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.05)
    for _ in range(2):
        for at in range(0, N, 16):
            xs, cs, ws = (t[at : at + 16] for t in data)
            optimizer.zero_grad()
            each = nn.functional.cross_entropy(hand(xs), cs, reduction="none")
            ((ws * each).sum() / ws.sum()).backward()
            optimizer.step()
    assert_equal_weights(net, hand, atol=1e-6)
    plain = entropy()
    scored = experiment().run_phase(eval_phase(graph, [plain]), **QUIET)
    want = nn.functional.cross_entropy(net(data[0]), data[1]).item()
    assert scored.aggregated_losses("net")[plain.label] == pytest.approx(want, rel=1e-5)


def test_labels_before_they_were_encoded():
    x, c, w = table()
    names, given = np.array(["high", "low", "mid"]), {"high": 1.0, "low": 3.0, "mid": 0.25}
    fs, net = rows(x, names[c], w), mlp(out=3)
    fs.fit_transform("LabelEncoder", domain="targets", keys="c")
    hand = twin(net)
    train(graph_of(fs, net), [entropy(given)], n_epochs=2)
    loss = nn.CrossEntropyLoss(weight=torch.tensor(list(given.values())))
    by_hand(hand, lambda p: torch.optim.SGD(p, lr=0.05), x, c, loss=loss)
    assert_equal_weights(net, hand, atol=1e-6)


def test_keras():
    from tests import keras_worlds

    keras = pytest.importorskip("keras")
    tf = pytest.importorskip("tensorflow")
    x, c, w = table()
    net = keras_worlds.net(out=3)
    hand = keras_worlds.twin(net)
    loss = mm.AppliedLoss(
        mm.Loss("SparseCategoricalCrossentropy", loss_kwargs={"from_logits": True}),
        "net", ["outputs", "targets"], class_weight="balanced",
    )  # fmt: skip
    train(graph_of(rows(x, c, w), net, "SGD"), [loss], n_epochs=2)
    by_class = np.array([balanced(c)[k] for k in range(3)], "f4")

    def weighted(out, target):
        each = keras.losses.sparse_categorical_crossentropy(target, out, from_logits=True)
        weights = tf.gather(by_class, target)
        return tf.reduce_sum(weights * each) / tf.reduce_sum(weights)

    keras_worlds.by_hand(hand, keras.optimizers.SGD(0.05), x, c, loss=weighted)
    for mine, theirs in zip(net.variables, hand.variables, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_an_estimator_is_fitted_with_them():
    x, c, w = table()
    fs = rows(x, c, w)
    node = mm.ModelNode("net", mm.ScikitModelWrapper(LogisticRegression(C=0.1)), fs)
    graph = mm.ModelGraph([node])
    inputs = [mm.InputBinding(node.node_id, node.feature_refs[0])]
    loss = mm.AppliedLoss(
        mm.Loss("cross_entropy"), "net", ["outputs", "targets"], class_weight="balanced"
    )
    experiment().run_phase(mm.FitPhase("fit", input_sources=inputs, losses=[loss]), **QUIET)
    want = LogisticRegression(C=0.1, class_weight="balanced").fit(x, c)
    np.testing.assert_allclose(graph.get_node("net").model.inner.coef_, want.coef_, atol=1e-4)


def cv_world(loss, sampler=None):
    x, c, w = table(160)
    fs = rows(x, c, w, cell=np.arange(160) // 8)
    fs.split_random({"train": 0.8, "val": 0.2}, seed=0)
    graph_of(fs, mm.models.torch.SequentialMLP(output_shape=(3,), hidden_dim=4), "adam", lr=0.01)
    own = experiment(audit="off")
    sampler = mm.SimpleSampler(batch_size=16, shuffle=True, seed=1)
    own.execution_plan.add_phase(
        mm.TrainPhase.from_split("train", split="train", sampler=sampler, losses=[loss], n_epochs=2)
    )
    own.execution_plan.add_phase(mm.EvalPhase.from_split("eval", split="val", losses=[loss]))
    return own


@pytest.mark.parametrize(
    "how",
    [{"stacked": False}, {"stacked": True}, pytest.param({"n_jobs": 2}, marks=pytest.mark.slow)],
)
def test_each_fold_counts_its_own_training_rows(how):
    own = cv_world(entropy())
    binding = mm.CVBinding("data", ["train", "val"], group_by="cell")
    cv = mm.CrossValidation(bindings=binding, experiment=own, n_folds=3, **how)
    results = cv.run(show_fold_progress=False, **QUIET)
    c, seen = table(160)[1], []
    for i, fold in enumerate(cv.folds):
        by_class = balanced(c[fold.sides["data"].train])
        weight = torch.tensor([by_class[k] for k in range(3)]).float()
        steps = results.get_fold(i).get_train_result("train")
        outputs, targets = (list(steps.tensors("net", d).values()) for d in ("outputs", "targets"))
        losses = [record.value for record in steps.losses("net").values()]
        want = [
            nn.functional.cross_entropy(o, torch.as_tensor(t).reshape(-1).long(), weight).item()
            for o, t in zip(outputs, targets, strict=True)
        ]
        np.testing.assert_allclose(losses, want, rtol=1e-4)
        seen.append(tuple(by_class.values()))
    assert len(set(seen)) == 3


def test_config():
    loss = entropy({0: 1.0, 1: 2.0, 2: 0.0})
    again = mm.AppliedLoss.from_config(loss.get_config())
    assert again == loss
    assert again.class_weight == {0: 1.0, 1: 2.0, 2: 0.0}


@pytest.mark.parametrize("given", ["unbalanced", {}, {0: -1.0}, {0: float("nan")}, {0: "2"}, 3.0])
def test_what_is_no_class_weight(given):
    with pytest.raises(ConfigError, match="class_weight"):
        entropy(given)


def test_refusals():
    x, c, w = table()
    with pytest.raises(ConfigError, match="over the batch"):
        mm.AppliedLoss(
            mm.Loss(lambda a, b: (a - b).sum(), over="batch", backend="torch"),
            "net", ["outputs", "targets"], class_weight="balanced",
        )  # fmt: skip
    graph = graph_of(rows(x, c, w), mlp(out=3))
    with pytest.raises(DataError, match=r"no weight for \[2\]"):
        train(graph, [entropy({0: 1.0, 1: 2.0})])
    with pytest.raises(UnknownNameError, match="class in class_weight"):
        train(graph, [entropy({0: 1.0, 1: 2.0, 2: 1.0, 7: 1.0})])
    with mm.ExperimentContext().activate():
        graph = graph_of(rows(x, (c + 0.5).astype("f4"), w), mlp())
        loss = mm.AppliedLoss(
            mm.Loss("mse"), "net", ["outputs", "targets"], class_weight="balanced"
        )
        with pytest.raises(DataError, match="fractions"):
            train(graph, [loss])
