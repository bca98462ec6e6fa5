"""
Export to ONNX
==============

The graph and its scalers become one function from raw columns to predictions in the target's
units, which runs without Python. Before the file is stored, its outputs are compared with those
of ``predict``. The data are the diabetes patients of scikit-learn.

**For your data:** if a node or scaler cannot be exported, an error names it; ``graph.save`` can
save all of them. Guide: :doc:`/howto/25_sharing_a_predictor`.
"""

# sphinx_gallery_alt = "Predictions of the ONNX file over those of the graph: all on the diagonal."
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from sklearn.datasets import load_diabetes

import modularml as mml
from modularml.models.torch import SequentialMLP
from modularml.plotting import parity

frame = load_diabetes(as_frame=True, scaled=False).frame
experiment = mml.Experiment("study", seed=0)
fs = mml.FeatureSet.from_pandas("patients", frame, ["bmi", "bp", "s5"], "target")
fs.split_random({"train": 0.7, "test": 0.3}, seed=0)
for domain in ("features", "targets"):
    fs.fit_transform("StandardScaler", domain=domain, fit_to_split="train")
net = mml.ModelNode("net", SequentialMLP(hidden_dim=16), fs, targets="target")
graph = mml.ModelGraph([net], mml.Optimizer("adam", opt_kwargs={"lr": 0.01}))
loss = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
sampler = mml.SimpleSampler(batch_size=32, shuffle=True)
experiment.run_phase(
    mml.TrainPhase.from_split("train", split="train", sampler=sampler, losses=[loss], n_epochs=10)
)

session = onnxruntime.InferenceSession(graph.export(Path(tempfile.mkdtemp()) / "study"))
columns = {each.name: frame[each.name].to_numpy() for each in session.get_inputs()}
(by_onnx,) = session.run(["target"], columns)
by_graph = graph.predict(frame)
print(f"inputs {list(columns)}, largest difference {np.abs(by_onnx - by_graph).max():.0e}")
parity(by_graph.ravel(), by_onnx.ravel(), title="ONNX against graph")
