"""
Residuals by group
==================

One number for all rows hides the group in which a model fails. Scores and residuals by group show
it. The data are the diabetes patients of scikit-learn, by decade of age.

**For your data:** group by any column, feature or tag; pass a column of numbers or times as
``over=``. Guide: :doc:`/howto/27_looking_at_results`.
"""

# sphinx_gallery_alt = "A box of residuals for each decade of age."
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge

import modularml as mml

frame = load_diabetes(as_frame=True, scaled=False).frame
features = list(frame)[:-1]
frame["decade"] = (frame["age"] // 10 * 10).astype(int)

fs = mml.FeatureSet.from_pandas(
    "patients", frame, features, "target", tag_cols="decade", unit={"target": "points"}
)
fs.split_random({"train": 0.5, "test": 0.5}, seed=0)
fs.fit_transform("StandardScaler", domain="features", fit_to_split="train")
mml.ModelGraph([mml.ModelNode("ridge", Ridge(), fs.reference(tags=[]))])
experiment = mml.Experiment.from_active_context("progression")
experiment.run_phase(mml.FitPhase.from_split("fit", split="train"))

scores = experiment.evaluate("test", metrics="rmse", group_by="decade")
print(scores.round(1))
scores.plot("residuals", group_by="decade", title="Test patients by age")
