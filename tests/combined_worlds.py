"""One experiment with any of many features, and the same thing written by hand.

What is written by hand takes raw arrays and row numbers, and nothing of the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn import preprocessing
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.model_selection import KFold
from torch import nn

import modularml as mm

N, STEPS, BATCH = 40, 4, 7
KINDS, MACHINES, GRADES = np.array(["a", "b", "c"]), np.arange(6) * 7 + 3, ["high", "low", "mid"]
WIDTH, N_CLASSES = 5, 3
PARTS = {"train": np.arange(4, 28), "val": np.arange(28, 34), "test": np.r_[0:4, 34:40]}


# ----------------------------------------------------------------------------------------- data


def raw(case: dict[str, str]) -> dict[str, np.ndarray]:
    """Return the columns of the samples and, by ``f`` and ``f_machine``, of the facts."""
    rng = np.random.default_rng(3)
    dtype = "f4" if case["dtype"] == "single" else "f8"
    x = (1 + rng.normal(size=(N, STEPS))).astype(dtype)
    mask = np.arange(STEPS) < rng.integers(2, STEPS + 1, N)[:, None]
    if case["padding"] == "masked":
        x[~mask] = -1
    if case["prep"] == "impute":
        x[np.arange(N), rng.permutation(np.arange(N) % STEPS)] = np.nan
    kind = KINDS[rng.permutation(np.arange(N) % 3)]
    of = rng.permutation(np.arange(N) % len(MACHINES))
    f = rng.normal(size=(len(MACHINES), 2)).astype(dtype)
    y = (6 + np.nan_to_num(x).mean(axis=1) / 3 + (kind == "a") + f[of, 0]).astype(dtype)
    order = rng.permutation(len(MACHINES))
    return {
        "x": x, "mask": mask, "kind": kind, "y": y, "c": np.digitize(y, np.quantile(y, [0.3, 0.6])),
        "w": rng.integers(1, 5, N) / 2.0, "machine": MACHINES[of],
        "f": f[order], "f_machine": MACHINES[order],
    }  # fmt: skip


def classes_weighted(data: dict[str, np.ndarray]) -> np.ndarray:
    """Return for each sample the weight of its class, as scikit-learn's ``balanced``."""
    counts = np.bincount(data["c"], minlength=N_CLASSES)
    return (N / (N_CLASSES * counts))[data["c"]]


def columns_of(case: dict[str, str], data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the table of the samples as a user has it."""
    columns = {k: data[k] for k in ("x", "kind", "y", "c", "w", "machine")}
    columns["cw"] = classes_weighted(data)
    if case["padding"] == "masked":
        columns["mask"] = data["mask"]
    if case["labels"] == "text":
        columns["c"] = np.array(GRADES)[data["c"]]
    return columns


# ---------------------------------------------------------------------------------- the package


def sets(case: dict[str, str], data: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """Return the FeatureSets of samples and facts, split and transformed."""
    columns = columns_of(case, data)
    features, targets = ["x", "kind"], ["y", "c"]
    tags = [k for k in columns if k not in (*features, *targets)]
    extra = {"mask": {"x": "mask"}} if case["padding"] == "masked" else {}
    fs = mm.FeatureSet.from_dict("data", columns, features, targets, tags, **extra)
    for name, rows in PARTS.items():
        fs.add_split(fs.take(rows, label=name))
    for step in prep_steps(case):
        fs.fit_transform(step, domain="features", keys="x", fit_to_split="train")
    if case["category"] != "none":
        step = {
            "onehot": preprocessing.OneHotEncoder(sparse_output=False),
            "ordinal": preprocessing.OrdinalEncoder(),
            "target": preprocessing.TargetEncoder(cv=KFold(3)),
        }[case["category"]]
        about = {"targets": "y"} if case["category"] == "target" else {}
        fs.fit_transform(step, domain="features", keys="kind", fit_to_split="train", **about)
    for step in target_steps(case):
        fs.fit_transform(step, domain="targets", keys="y", fit_to_split="train")
    if case["labels"] == "text":
        fs.fit_transform("LabelEncoder", domain="targets", keys="c", fit_to_split="train")
    facts = None
    if case["sets"] == "joined":
        own = {"f": data["f"], "machine": data["f_machine"]}
        facts = mm.FeatureSet.from_dict("facts", own, "f", [], "machine")
        for name in PARTS:
            facts.add_split(facts.take(np.arange(len(MACHINES)), label=name))
        facts.fit_transform("StandardScaler", domain="features", fit_to_split="train")
    return fs, facts


def prep_steps(case: dict[str, str]) -> list[Any]:
    """Return the steps that features take, unfitted."""
    return {
        "raw": [],
        "standard": [preprocessing.StandardScaler()],
        "minmax": [preprocessing.MinMaxScaler(feature_range=(-1, 1))],
        "pca": [preprocessing.StandardScaler(), PCA(2, svd_solver="full")],
        "impute": [SimpleImputer(add_indicator=True), preprocessing.StandardScaler()],
    }[case["prep"]]


def target_steps(case: dict[str, str]) -> list[Any]:
    """Return the steps that the target takes, unfitted."""
    return {
        "raw": [],
        "standard": [preprocessing.StandardScaler()],
        "chain": [preprocessing.MinMaxScaler(), preprocessing.StandardScaler()],
    }[case["target"]]


def pattern(*shape: int) -> np.ndarray:
    """Return first weights that are the same each time they are drawn."""
    return (0.4 * np.sin(1.0 + 1.7 * np.arange(np.prod(shape)))).reshape(shape).astype("f4")


class Fixed(nn.Linear):
    """A layer whose first weights are always the same, so that each fold starts alike."""

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.weight.copy_(torch.tensor(pattern(self.in_features, self.out_features).T))
            self.bias.zero_()


class Part(nn.Sequential):
    """A layer, and a function of it."""

    def __init__(self, d: int, out: int, bend: bool) -> None:
        super().__init__(nn.Flatten(), Fixed(d, out), *[nn.Tanh()] * bend)


def keras_part(d: int, out: int, bend: bool, shape: tuple[int, ...]) -> Any:
    """Return the same in Keras."""
    from tests.keras_worlds import keras, layers

    own = keras.initializers.Orthogonal(seed=d + out)
    dense = layers.Dense(out, activation="tanh" if bend else None, kernel_initializer=own)
    return keras.Sequential([keras.Input(shape), layers.Flatten(), dense])


def part(case: dict[str, str], d: int, out: int, bend: bool, n_columns: int | None = 1) -> Any:
    """Return a model of a node; ``n_columns`` where it reads columns of ``d`` numbers."""
    if case["framework"] == "torch":
        given = {"d": d, "out": out, "bend": bend}
        return mm.TorchModelWrapper(model_class=Part, model_kwargs=given)
    return keras_part(d, out, bend, (d,) if n_columns is None else (n_columns, d))


def widths(case: dict[str, str]) -> dict[str, int]:
    """Return the inputs of a graph and how many numbers of a sample each has."""
    x = {"pca": 2, "impute": 2 * STEPS}.get(case["prep"], STEPS)
    legs = {"x": x}
    if case["category"] != "none":
        legs["kind"] = 3 if case["category"] == "onehot" else 1
    if case["sets"] == "joined":
        legs["f"] = 2
    return legs


def heads_of(case: dict[str, str]) -> dict[str, tuple[str, int, float]]:
    """Return the heads: target, outputs and weight of the loss."""
    known = {"reg": ("y", 1, 1.0), "cls": ("c", N_CLASSES, 0.5)}
    return {k: v for k, v in known.items() if case["heads"] in (k, "both")}


def weight_column(case: dict[str, str]) -> str | None:
    """Return the column of weights of a case."""
    return {"none": None, "samples": "w", "classes": "cw"}[case["weights"]]


def losses_of(case: dict[str, str]) -> list[Any]:
    """Return the losses on the heads."""
    names = {"reg": "mse", "cls": "cross_entropy"}
    return [
        mm.AppliedLoss(
            mm.Loss(names[head]), head, ["outputs", key], weight=weight, label=head,
            sample_weight=weight_column(case),
        )
        for head, (key, _, weight) in heads_of(case).items()
    ]  # fmt: skip


def optimizer_of(case: dict[str, str]) -> Any:
    """Return the optimizer of a graph."""
    limits = {"norm": {"clip_norm": 0.5}, "value": {"clip_value": 0.05}}
    own = {"sgd": {"lr": 0.05, "momentum": 0.9}, "adam": {"lr": 0.02}}[case["optimizer"]]
    if case["optimizer"] == "adam" and case["framework"] == "keras":
        own["eps"] = 1e-8
    return mm.Optimizer(case["optimizer"], opt_kwargs=own, **limits.get(case["clip"], {}))


def graph_of(case: dict[str, str], fs: Any, facts: Any) -> Any:
    """Return the graph of a case."""
    legs = widths(case)
    sources = {"x": fs.reference(features="x"), "kind": fs.reference(features="kind")}
    if facts is not None:
        sources["f"] = facts.reference(on="machine")
    nodes = [
        mm.ModelNode(f"{leg}_leg", part(case, d, WIDTH, True, _axis(leg, d)), sources[leg])
        for leg, d in legs.items()
    ]
    trunk = nodes[0]
    if len(nodes) > 1:
        trunk = mm.ConcatNode("both", nodes, concat_axis_targets="first", concat_axis_tags="first")
        nodes.append(trunk)
    for head, (_, out, _) in heads_of(case).items():
        model = part(case, WIDTH * len(legs), out, False, None)
        nodes.append(mm.ModelNode(head, model, trunk))
    graph = mm.ModelGraph(nodes, optimizer_of(case))
    if case["frozen"] == "leg":
        graph.freeze(["x_leg"])
    return graph


def _axis(leg: str, d: int) -> int | None:
    """Return how many columns a leg stacks; None for a scalar column, which is no axis more."""
    return None if leg == "kind" and d == 1 else 1


# -------------------------------------------------------------------------------------- by hand


@dataclass
class Prepared:
    """Arrays as models read them, and how to bring outputs back to units."""

    inputs: dict[str, np.ndarray]
    targets: dict[str, np.ndarray]
    weights: np.ndarray
    scalers: list[Any]

    def own_units(self, head: str, outputs: np.ndarray) -> np.ndarray:
        """Return outputs of a head as predictions are given."""
        if head == "reg":
            for scaler in reversed(self.scalers):
                outputs = scaler.inverse_transform(outputs)
        return outputs


def prepare(case: dict[str, str], data: dict[str, np.ndarray], train: np.ndarray) -> Prepared:
    """Fit every step on training rows and apply it to all rows."""
    x, mask = data["x"].astype("f8"), data["mask"]
    padded = case["padding"] == "masked"
    for step in prep_steps(case):
        seen = np.where(mask, x, np.nan) if padded else x
        new = step.fit(seen[train]).transform(seen)
        x = np.where(mask, new, x) if padded else new
    inputs = {"x": x}
    kind = data["kind"][:, None]
    if case["category"] == "onehot":
        inputs["kind"] = (kind == KINDS).astype("f4")
    elif case["category"] == "ordinal":
        inputs["kind"] = np.searchsorted(KINDS, kind).astype("f4")
    elif case["category"] == "target":
        encoder = preprocessing.TargetEncoder(cv=KFold(3))
        own = encoder.fit_transform(kind[train], data["y"][train].astype("f8"))
        inputs["kind"] = encoder.transform(kind)
        inputs["kind"][train] = own
    if case["sets"] == "joined":
        facts = dict(
            zip(data["f_machine"], preprocessing.scale(data["f"].astype("f8")), strict=True)
        )
        inputs["f"] = np.array([facts[machine] for machine in data["machine"]])
    y, scalers = data["y"][:, None].astype("f8"), target_steps(case)
    for scaler in scalers:
        y = scaler.fit(y[train]).transform(y)
    weights = {None: np.ones(N), "w": data["w"], "cw": classes_weighted(data)}
    classes = data["c"]
    if case["labels"] == "text":
        classes = np.unique(np.array(GRADES)[classes], return_inverse=True)[1]
    return Prepared(
        {k: v.astype("f4") for k, v in inputs.items()},
        {"reg": y.astype("f4"), "cls": classes.astype("i8")},
        weights[weight_column(case)].astype("f4"),
        scalers,
    )


class TorchHand:
    """The models in torch, trained as people write it."""

    def __init__(self, case: dict[str, str]) -> None:
        self.case, legs = case, widths(case)
        self.legs = {k: Part(d, WIDTH, True) for k, d in legs.items()}
        self.heads = {
            k: Part(WIDTH * len(legs), out, False) for k, (_, out, _) in heads_of(case).items()
        }
        if case["frozen"] == "leg":
            self.legs["x"].requires_grad_(False)
        models = [*self.legs.values(), *self.heads.values()]
        self.moved = [p for m in models for p in m.parameters() if p.requires_grad]
        self.optimizer = (
            torch.optim.SGD(self.moved, lr=0.05, momentum=0.9)
            if case["optimizer"] == "sgd"
            else torch.optim.Adam(self.moved, lr=0.02)
        )

    def forward(self, data: Prepared, rows: np.ndarray) -> dict[str, Any]:
        trunk = torch.cat([m(torch.tensor(data.inputs[k][rows])) for k, m in self.legs.items()], 1)
        return {name: head(trunk) for name, head in self.heads.items()}

    def losses(self, data: Prepared, rows: np.ndarray) -> dict[str, Any]:
        """Return the weighted mean of each head's loss over the rows."""
        w = torch.tensor(data.weights[rows])
        found = {}
        for head, out in self.forward(data, rows).items():
            true = torch.tensor(data.targets[head][rows])
            if head == "reg":
                each = ((out - true) ** 2)[:, 0]
            else:
                each = nn.functional.cross_entropy(out, true, reduction="none")
            found[head] = heads_of(self.case)[head][2] * (w * each).sum() / w.sum()
        return found

    def step(self, data: Prepared, group: list[np.ndarray]) -> list[dict[str, float]]:
        self.optimizer.zero_grad()
        total, values = sum(data.weights[rows].sum() for rows in group), []
        for rows in group:
            found = self.losses(data, rows)
            (sum(found.values()) * float(data.weights[rows].sum() / total)).backward()
            values.append({k: v.item() for k, v in found.items()})
        if self.case["clip"] == "norm":
            nn.utils.clip_grad_norm_(self.moved, 0.5)
        elif self.case["clip"] == "value":
            nn.utils.clip_grad_value_(self.moved, 0.05)
        self.optimizer.step()
        return values

    def outputs(self, data: Prepared, rows: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            return {k: v.numpy() for k, v in self.forward(data, rows).items()}

    def values(self, data: Prepared, rows: np.ndarray) -> dict[str, float]:
        with torch.no_grad():
            return {k: v.item() for k, v in self.losses(data, rows).items()}


class KerasHand(TorchHand):
    """The models in Keras, trained as people write it."""

    def __init__(self, case: dict[str, str]) -> None:
        from tests.keras_worlds import keras, tf

        self.tf, self.case, legs = tf, case, widths(case)
        self.legs = {k: keras_part(d, WIDTH, True, (d,)) for k, d in legs.items()}
        self.heads = {
            k: keras_part(d, out, False, (d,))
            for d in [WIDTH * len(legs)]
            for k, (_, out, _) in heads_of(case).items()
        }
        frozen = ["x"] if case["frozen"] == "leg" else []
        models = [m for k, m in (self.legs | self.heads).items() if k not in frozen]
        self.moved = [v for m in models for v in m.trainable_variables]
        self.optimizer = (
            keras.optimizers.SGD(0.05, momentum=0.9)
            if case["optimizer"] == "sgd"
            else keras.optimizers.Adam(0.02, epsilon=1e-8)
        )

    def forward(self, data: Prepared, rows: np.ndarray) -> dict[str, Any]:
        outs = [m(self.tf.constant(data.inputs[k][rows])) for k, m in self.legs.items()]
        trunk = self.tf.concat(outs, 1)
        return {name: head(trunk) for name, head in self.heads.items()}

    def losses(self, data: Prepared, rows: np.ndarray) -> dict[str, Any]:
        tf, found = self.tf, {}
        w = tf.constant(data.weights[rows])
        for head, out in self.forward(data, rows).items():
            true = data.targets[head][rows]
            if head == "reg":
                each = ((out - true) ** 2)[:, 0]
            else:
                each = tf.nn.sparse_softmax_cross_entropy_with_logits(true, out)
            weight = heads_of(self.case)[head][2]
            found[head] = weight * tf.reduce_sum(w * each) / tf.reduce_sum(w)
        return found

    def step(self, data: Prepared, group: list[np.ndarray]) -> list[dict[str, float]]:
        tf = self.tf
        total, values, grads = sum(data.weights[rows].sum() for rows in group), [], None
        for rows in group:
            with tf.GradientTape() as tape:
                found = self.losses(data, rows)
                loss = sum(found.values()) * float(data.weights[rows].sum() / total)
            own = tape.gradient(loss, self.moved)
            grads = own if grads is None else [a + b for a, b in zip(grads, own, strict=True)]
            values.append({k: float(v) for k, v in found.items()})
        if self.case["clip"] == "norm":
            grads, _ = tf.clip_by_global_norm(grads, 0.5)
        elif self.case["clip"] == "value":
            grads = [tf.clip_by_value(g, -0.05, 0.05) for g in grads]
        self.optimizer.apply_gradients(zip(grads, self.moved, strict=True))
        return values

    def outputs(self, data: Prepared, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {k: v.numpy() for k, v in self.forward(data, rows).items()}

    def values(self, data: Prepared, rows: np.ndarray) -> dict[str, float]:
        return {k: float(v) for k, v in self.losses(data, rows).items()}


def hand(case: dict[str, str]) -> TorchHand:
    """Return the models that are trained by hand."""
    return {"torch": TorchHand, "keras": KerasHand}[case["framework"]](case)


def train_by_hand(
    model: TorchHand, data: Prepared, epochs: list[list[np.ndarray]], val: np.ndarray
) -> list[dict[str, float]]:
    """Train on batches of rows and return, for each epoch, mean losses of training and ``val``."""
    found = []
    together = {"single": 1, "several": 2}[model.case["accumulate"]]
    for batches in epochs:
        values = []
        for at in range(0, len(batches), together):
            values += model.step(data, batches[at : at + together])
        w = np.array([data.weights[rows].sum(dtype="f8") for rows in batches])
        mean = {k: np.dot(w, [v[k] for v in values]) / w.sum() for k in values[0]}
        own = {f"val_{k}": v for k, v in model.values(data, val).items()}
        found.append({"train_loss": sum(mean.values()), **own})
    return found
