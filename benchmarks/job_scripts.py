"""Whole jobs, as scripts would do them: through modularml, and by hand.

``python -m benchmarks.job_scripts NAME ours|hand FOLDER`` runs one and prints its test score. It
imports what the script itself would import.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

N_FEATURES = 30


def write_data(folder: Path, *, quick: bool = False) -> None:
    """Write the tables of all jobs into a folder."""
    import pandas as pd
    from sklearn.datasets import load_iris

    iris = load_iris(as_frame=True).frame
    iris.columns = ["sepal_length", "sepal_width", "petal_length", "petal_width", "species"]
    iris.to_csv(folder / "iris.csv", index=False)
    rng = np.random.default_rng(0)
    n = 200 if quick else 4_000
    phase, rate = rng.uniform(0, 6, (n, 1)), rng.uniform(1, 3, (n, 1))
    curve = np.sin(phase + rate * np.linspace(0, 6, 100)) + rng.normal(0, 0.1, (n, 100))
    scalars = rng.normal(size=(n, 4))
    life = rate[:, 0] + scalars[:, 0] * scalars[:, 1]
    np.savez(folder / "curves.npz", curve=curve, scalars=scalars, life=life)
    for name, rows in (("table", 2_000 if quick else 200_000), ("groups", 500 if quick else 5_000)):
        x = rng.normal(size=(rows, N_FEATURES)).astype(np.float32)
        frame = pd.DataFrame(x, columns=[f"x{i}" for i in range(N_FEATURES)])
        frame["y"] = (x[:, 0] * x[:, 1] + np.sin(x[:, 2]) + rng.normal(0, 0.1, rows)).astype("f4")
        frame["group"] = rng.integers(0, 50, rows)
        frame.to_parquet(folder / f"{name}.parquet")


# -- through modularml -----------------------------------------------------------------------


def train_ours(graph: Any, fs: Any, head: str, loss: str, batch: int, epochs: int) -> Any:
    """Train, validating each epoch, evaluate on the test rows, save, and return predictions."""
    import modularml as mml

    applied = mml.AppliedLoss(mml.Loss(loss), on=head, inputs=["outputs", "targets"])
    validate = mml.Evaluation.from_split(
        "val", split="val", metrics=[mml.EvalLossMetric(loss=applied)]
    )
    train = mml.TrainPhase.from_split(
        "train",
        split="train",
        sampler=mml.SimpleSampler(batch_size=batch, shuffle=True, seed=0),
        losses=[applied],
        n_epochs=epochs,
        callbacks=[validate],
    )
    experiment = mml.Experiment.from_active_context("job")
    experiment.run_phase(train, show_training_progress=False)
    experiment.run_phase(mml.EvalPhase.from_split("test", split="test", losses=[applied]))
    experiment.save("job.exp.mml", overwrite=True)
    return experiment.predict(fs["test"])


def digits_ours(folder: Path) -> float:
    """Classify digits from images and profiles, two branches and a head."""
    import torch
    from sklearn.datasets import load_digits

    import modularml as mml
    from modularml.models.torch import SequentialCNN, SequentialMLP

    torch.manual_seed(0)
    data = load_digits()
    columns = {"image": data.images, "rows": data.images.mean(axis=2), "digit": data.target}
    fs = mml.FeatureSet.from_dict("digits", columns, ["image", "rows"], "digit")
    _split(fs, stratify_by="digit")
    everything = {"keys": "image", "merged_axes": (0, 1, 2, 3)}
    fs.fit_transform("MinMaxScaler", domain="features", fit_to_split="train", **everything)
    cnn = SequentialCNN(output_shape=(64,), hidden_dim=32, pooling=2)
    image = mml.ModelNode("image", cnn, fs.reference(features="image", rep="transformed"))
    mlp = SequentialMLP(output_shape=(16,), n_layers=2, hidden_dim=32)
    rows = mml.ModelNode("rows", mlp, fs.reference(features="rows"))
    both = mml.ConcatNode("both", [image, rows], concat_axis_targets="first")
    head = mml.ModelNode("head", SequentialMLP(output_shape=(10,), n_layers=2, hidden_dim=32), both)
    graph = mml.ModelGraph([image, rows, both, head], mml.Optimizer("adam"))
    out = train_ours(graph, fs, "head", "cross_entropy", 32, 20)
    return float((out.argmax(axis=1) == fs["test"].get_targets("numpy")[:, 0]).mean())


def iris_ours(folder: Path) -> float:
    """Classify 150 rows of a CSV file."""
    import pandas as pd
    import torch

    import modularml as mml
    from modularml.models.torch import SequentialMLP

    torch.manual_seed(0)
    frame = pd.read_csv(folder / "iris.csv")
    features = list(frame.columns[:4])
    fs = mml.FeatureSet.from_pandas("iris", frame, features, "species")
    _split(fs, stratify_by="species")
    fs.fit_transform("StandardScaler", domain="features", fit_to_split="train")
    mlp = SequentialMLP(output_shape=(3,), n_layers=2, hidden_dim=32)
    node = mml.ModelNode("mlp", mlp, fs.reference(features=features, targets="species"))
    graph = mml.ModelGraph([node], mml.Optimizer("adam", opt_kwargs={"lr": 1e-2}))
    out = train_ours(graph, fs, "mlp", "cross_entropy", 32, 30)
    return float((out.argmax(axis=1) == fs["test"].get_targets("numpy")[:, 0]).mean())


def curves_ours(folder: Path) -> float:
    """Predict a number from a curve and scalars."""
    import torch

    import modularml as mml
    from modularml.models.torch import SequentialCNN, SequentialMLP

    torch.manual_seed(0)
    data = np.load(folder / "curves.npz")
    fs = mml.FeatureSet.from_dict("cells", dict(data), ["curve", "scalars"], "life")
    _split(fs)
    for key in ("curve", "scalars"):
        fs.fit_transform("StandardScaler", domain="features", keys=key, fit_to_split="train")
    cnn = SequentialCNN(output_shape=(32,), hidden_dim=16, kernel_size=3, padding=1, pooling=2)
    curve = mml.ModelNode("curve", cnn, fs.reference(features="curve"))
    mlp = SequentialMLP(output_shape=(16,), n_layers=2, hidden_dim=32)
    scalars = mml.ModelNode("scalars", mlp, fs.reference(features="scalars"))
    both = mml.ConcatNode("both", [curve, scalars], concat_axis_targets="first")
    head = mml.ModelNode("head", SequentialMLP(n_layers=2, hidden_dim=32), both)
    graph = mml.ModelGraph([curve, scalars, both, head], mml.Optimizer("adam"))
    out = train_ours(graph, fs, "head", "mse", 64, 10)
    return _error(out, fs["test"].get_targets("numpy"))


def table_ours(folder: Path) -> float:
    """Predict a number from a long table."""
    import pandas as pd
    import torch

    import modularml as mml
    from modularml.models.torch import SequentialMLP

    torch.manual_seed(0)
    frame = pd.read_parquet(folder / "table.parquet")
    features = list(frame.columns[:N_FEATURES])
    fs = mml.FeatureSet.from_pandas("table", frame, features, "y", tag_cols="group")
    _split(fs)
    fs.fit_transform("StandardScaler", domain="features", fit_to_split="train")
    mlp = SequentialMLP(n_layers=3, hidden_dim=64)
    node = mml.ModelNode("mlp", mlp, fs.reference(features=features))
    graph = mml.ModelGraph([node], mml.Optimizer("adam"))
    out = train_ours(graph, fs, "mlp", "mse", 256, 3)
    return _error(out, fs["test"].get_targets("numpy"))


def forest_ours(folder: Path) -> float:
    """Cross-validate a forest in 5 grouped folds."""
    import pandas as pd
    from sklearn.ensemble import RandomForestRegressor

    import modularml as mml

    frame = pd.read_parquet(folder / "groups.parquet")
    features = list(frame.columns[:N_FEATURES])
    fs = mml.FeatureSet.from_pandas("table", frame, features, "y", tag_cols="group")
    fs.split_random({"train": 0.8, "val": 0.2}, group_by="group", seed=0)
    model = mml.ScikitModelWrapper(RandomForestRegressor(20, max_depth=10, random_state=0))
    mml.ModelGraph([mml.ModelNode("forest", model, fs.reference(features=features))])
    mse = [mml.AppliedLoss(mml.Loss("mse"), on="forest", inputs=["outputs", "targets"])]
    fit = mml.FitPhase.from_split("fit", split="train", freeze_after_fit=True)
    plan = mml.PhaseGroup("plan", [fit, mml.EvalPhase.from_split("eval", split="val", losses=mse)])
    experiment = mml.Experiment.from_active_context("job")
    binding = mml.CVBinding(fs, ["train", "val"], group_by="group")
    folds = mml.CrossValidation(bindings=binding, n_folds=5, phase=plan, experiment=experiment)
    scores = folds.run(show_fold_progress=False, show_training_progress=False)
    return float(scores.to_pandas()["eval.mse_forest"].mean())


def _split(fs: Any, **kwargs: Any) -> None:
    fs.split_random({"train": 0.6, "val": 0.2, "test": 0.2}, seed=0, **kwargs)


def _error(out: Any, truth: Any) -> float:
    return float(((np.asarray(out) - truth) ** 2).mean())


# -- by hand ---------------------------------------------------------------------------------


def parts(n: int, stratify: Any = None) -> list[Any]:
    """Return the rows of training, validation and test by scikit-learn's splitter."""
    from sklearn.model_selection import train_test_split

    train, rest = train_test_split(np.arange(n), train_size=0.6, stratify=stratify, random_state=0)
    within = None if stratify is None else stratify[rest]
    return [train, *train_test_split(rest, train_size=0.5, stratify=within, random_state=0)]


def train_by_hand(
    model: Any, inputs: Sequence[Any], y: Any, rows: Any, loss_fn: Any, batch: int, epochs: int
) -> Any:
    """Train a model of several inputs, validating each epoch, save it and return predictions."""
    import torch

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2 if len(y) == 150 else 1e-3)
    train, val, test = (torch.from_numpy(r) for r in rows)
    history = []
    for _ in range(epochs):
        model.train()
        total = 0.0
        for at in train[torch.randperm(len(train))].split(batch):
            optimizer.zero_grad()
            loss = loss_fn(model(*(x.index_select(0, at) for x in inputs)), y.index_select(0, at))
            loss.backward()
            optimizer.step()
            total += loss.item() * len(at)
        model.eval()
        with torch.no_grad():
            val_loss = loss_fn(model(*(x[val] for x in inputs)), y[val]).item()
        history.append((total / len(train), val_loss))
    with torch.no_grad():
        out = model(*(x[test] for x in inputs))
        loss_fn(out, y[test]).item()
    torch.save({"model": model.state_dict(), "history": history}, "job.pt")
    return out.numpy()


def two_branches(first: Any, second: Any, head: Any) -> Any:
    """Return a module that concatenates two encoders before a head."""
    import torch

    class Branches(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = first, second, head

        def forward(self, a: Any, b: Any) -> Any:
            return self.head(torch.cat((self.first(a), self.second(b)), dim=1))

    return Branches()


def digits_hand(folder: Path) -> float:
    """Classify digits from images and profiles, two branches and a head."""
    import torch
    from sklearn.datasets import load_digits
    from sklearn.preprocessing import MinMaxScaler
    from torch import nn

    torch.manual_seed(0)
    data = load_digits()
    rows = parts(len(data.target), data.target)
    image = data.images.reshape(-1, 1)
    scaler = MinMaxScaler().fit(data.images[rows[0]].reshape(-1, 1))
    image = scaler.transform(image).reshape(-1, 1, 8, 8).astype(np.float32)
    profile = data.images.mean(axis=2).astype(np.float32)
    cnn = nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3), nn.ReLU(), nn.MaxPool2d(1), nn.Flatten(), nn.Linear(32, 64)),
    )
    mlp = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16))
    head = nn.Sequential(nn.Linear(80, 32), nn.ReLU(), nn.Linear(32, 10))
    inputs, y = (torch.from_numpy(image), torch.from_numpy(profile)), torch.from_numpy(data.target)
    model = two_branches(cnn, mlp, head)
    out = train_by_hand(model, inputs, y, rows, nn.CrossEntropyLoss(), 32, 20)
    return float((out.argmax(axis=1) == data.target[rows[2]]).mean())


def iris_hand(folder: Path) -> float:
    """Classify 150 rows of a CSV file."""
    import pandas as pd
    import torch
    from sklearn.preprocessing import StandardScaler
    from torch import nn

    torch.manual_seed(0)
    frame = pd.read_csv(folder / "iris.csv")
    x, y = frame.iloc[:, :4].to_numpy(), frame["species"].to_numpy()
    rows = parts(len(y), y)
    x = StandardScaler().fit(x[rows[0]]).transform(x).astype(np.float32)
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
    inputs = (torch.from_numpy(x),)
    loss_fn, target = nn.CrossEntropyLoss(), torch.tensor(y)
    out = train_by_hand(model, inputs, target, rows, loss_fn, 32, 30)
    return float((out.argmax(axis=1) == y[rows[2]]).mean())


def curves_hand(folder: Path) -> float:
    """Predict a number from a curve and scalars."""
    import torch
    from sklearn.preprocessing import StandardScaler
    from torch import nn

    torch.manual_seed(0)
    data = np.load(folder / "curves.npz")
    y = data["life"].astype(np.float32)[:, None]
    rows = parts(len(y))
    scaled = [
        StandardScaler().fit(values[rows[0]]).transform(values).astype(np.float32)
        for values in (data["curve"], data["scalars"])
    ]
    cnn = nn.Sequential(
        *(nn.Conv1d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2)),
        *(nn.Conv1d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2)),
        *(nn.Flatten(), nn.Linear(400, 32)),
    )
    mlp = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 16))
    head = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 1))
    inputs = (torch.from_numpy(scaled[0])[:, None], torch.from_numpy(scaled[1]))
    model = two_branches(cnn, mlp, head)
    out = train_by_hand(model, inputs, torch.from_numpy(y), rows, nn.MSELoss(), 64, 10)
    return _error(out, y[rows[2]])


def table_hand(folder: Path) -> float:
    """Predict a number from a long table."""
    import pandas as pd
    import torch
    from sklearn.preprocessing import StandardScaler
    from torch import nn

    torch.manual_seed(0)
    frame = pd.read_parquet(folder / "table.parquet")
    x, y = frame.iloc[:, :N_FEATURES].to_numpy(), frame[["y"]].to_numpy()
    rows = parts(len(y))
    x = StandardScaler().fit(x[rows[0]]).transform(x)
    model = nn.Sequential(
        *(nn.Linear(N_FEATURES, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    )
    inputs, target = (torch.from_numpy(x),), torch.tensor(y)
    out = train_by_hand(model, inputs, target, rows, nn.MSELoss(), 256, 3)
    return _error(out, y[rows[2]])


def forest_hand(folder: Path) -> float:
    """Cross-validate a forest in 5 grouped folds."""
    import pandas as pd
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.metrics import mean_squared_error
    from sklearn.model_selection import GroupKFold

    frame = pd.read_parquet(folder / "groups.parquet")
    x, y = frame.iloc[:, :N_FEATURES].to_numpy(), frame["y"].to_numpy()
    scores = []
    for train, val in GroupKFold(5).split(x, y, frame["group"]):
        model = RandomForestRegressor(20, max_depth=10, random_state=0).fit(x[train], y[train])
        scores.append(mean_squared_error(y[val], model.predict(x[val])))
    return float(np.mean(scores))


if __name__ == "__main__":
    name, side, folder = sys.argv[1:]
    if name != "forest":
        import torch

        torch.set_num_threads(1)
    print(globals()[f"{name}_{side}"](Path(folder)))
