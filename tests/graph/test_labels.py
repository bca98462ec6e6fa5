"""Text labels: scored, decoded and predicted as scikit-learn does by hand."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

import modularml as mm
from modularml.errors import ConfigError, ShapeError

N = 60
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 3)).astype("f4")
SITE = RNG.choice(["north", "south"], N)
LABEL = np.array(["well", "sick", "late"])[(X[:, 0] > 0).astype(int) + (X[:, 1] > 0.5)]
ORDER = ["well", "sick", "late"]


def world(node, target=LABEL, features=X, encoder=None):
    experiment = mm.Experiment("e", audit="off")
    fs = mm.FeatureSet.from_dict("fs", {"x": features, "y": target}, "x", "y")
    fs.split_random({"train": 0.7, "val": 0.3}, seed=1)
    if encoder is not None:
        fs.fit_transform(encoder, domain="targets", fit_to_split="train")
    return experiment, fs, mm.ModelNode("net", node, fs)


@pytest.mark.parametrize("target", [LABEL, np.where(X[:, 0] > 0, 5, 3)], ids=["text", "numbers"])
def test_a_classifier_on_labels_is_scored_and_decoded(target):
    experiment, fs, node = world(LogisticRegression(), target)
    mm.ModelGraph([node])
    experiment.run_phase(mm.FitPhase.from_split("fit", split="train"))
    results = experiment.run_phase(mm.EvalPhase.from_split("eval", split="val"))
    train, val = fs["train"], fs["val"]
    y = {part.label: part.get_targets()["y"] for part in (train, val)}
    by_hand = LogisticRegression().fit(train.get_features()["x"], y["train"])
    x = val.get_features()["x"]
    found = results.scores(["accuracy", "log_loss"]).set_index("score")["value"]
    assert found["accuracy"] == pytest.approx(accuracy_score(y["val"], by_hand.predict(x)))
    assert found["log_loss"] == pytest.approx(log_loss(y["val"], by_hand.predict_proba(x)))
    for rows in (val, {"x": x}):
        assert experiment.predict(rows, decode=True)[:, 0].tolist() == by_hand.predict(x).tolist()
        frame = experiment.predict(rows, fmt="pandas")
        for label, scores in zip(by_hand.classes_, by_hand.predict_proba(x).T, strict=True):
            np.testing.assert_allclose(frame[str(label)], scores)


@pytest.mark.parametrize("encoder", ["LabelEncoder", OrdinalEncoder(categories=[ORDER])])
def test_encoded_labels_of_a_network(encoder):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 3))
    experiment, fs, node = world(net, encoder=encoder)
    graph = mm.ModelGraph([node], mm.Optimizer("adam", opt_kwargs={"lr": 0.1}))
    loss = mm.AppliedLoss(mm.Loss("crossentropy"), on="net", inputs=["outputs", "targets"])
    sampler = mm.SimpleSampler(batch_size=42)
    phase = mm.TrainPhase.from_split("t", split="train", sampler=sampler, losses=[loss], n_epochs=9)
    experiment.run_phase(phase)
    logits = graph.predict(fs["val"])
    labels = np.array(ORDER if encoder != "LabelEncoder" else sorted(ORDER))
    expected = labels[logits.argmax(1)]
    for rows in (fs["val"], {"x": fs["val"].get_features()["x"]}):
        assert experiment.predict(rows, decode=True)[:, 0].tolist() == expected.tolist()
    assert graph.predict(fs["val"], fmt="pandas").columns.tolist() == labels.tolist()
    results = experiment.run_phase(mm.EvalPhase.from_split("eval", split="val"))
    truth = fs["val"].get_targets(rep="raw")["y"]
    score = results.scores(["accuracy"])["value"][0]
    assert score == pytest.approx(accuracy_score(truth, expected))


def test_what_cannot_be_decoded_is_refused():
    experiment, _, node = world(LogisticRegression(), X)
    torch = pytest.importorskip("torch")
    node = mm.ModelNode("two", torch.nn.Linear(3, 3), experiment.ctx.get_node(label="fs"))
    mm.ModelGraph([node]).build()
    with pytest.raises(ConfigError, match="decode needs one target column of classes"):
        experiment.predict({"x": X}, decode=True)


def test_text_reaches_scikit_learn_and_is_refused_elsewhere_with_the_remedy():
    experiment, fs, node = world(OneHotEncoder(sparse_output=False), X[:, 0], SITE)
    mm.ModelGraph([node])
    experiment.run_phase(mm.FitPhase.from_split("fit", split="train"))
    site = fs["val"].get_features()["x"]
    expected = OneHotEncoder(sparse_output=False).fit_transform(SITE[:, None])
    for rows in (fs, {"x": SITE}):
        np.testing.assert_array_equal(experiment.predict(rows), expected)
    assert site.tolist() == SITE[fs["val"].indices].tolist()
    torch = pytest.importorskip("torch")
    with mm.ExperimentContext().activate():
        _, _, node = world(torch.nn.Linear(1, 1), X[:, 0], SITE)
        graph = mm.ModelGraph([node])
        with pytest.raises(ShapeError, match=r"not numbers; encode it with fs\.fit_transform"):
            graph.build()
