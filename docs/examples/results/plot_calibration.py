"""
Are probabilities calibrated?
=============================

Of the rows with a predicted probability of 70 %, seven in ten should be malignant. The
calibration plot shows whether they are; the Brier score summarizes it in one number. Naive Bayes
counts related columns twice, so it is overconfident. The data are the breast tumours of
scikit-learn.

**For your data:** use a few hundred rows that were not used for training or choosing;
``positive=`` names the class. Guide: :doc:`/howto/27_looking_at_results`.
"""

# sphinx_gallery_alt = "Share of malignant tumours over predicted probability, beside the diagonal."
from sklearn.datasets import load_breast_cancer
from sklearn.naive_bayes import GaussianNB

import modularml as mml

bunch = load_breast_cancer(as_frame=True)
frame = bunch.data.rename(columns=lambda name: name.replace(" ", "_"))
features = list(frame)[:10]
frame["kind"] = bunch.target_names[bunch.target]

fs = mml.FeatureSet.from_pandas("tumours", frame, features, "kind")
fs.split_random({"train": 0.4, "test": 0.6}, stratify_by="kind", seed=0)
model = mml.ScikitModelWrapper(GaussianNB(), output_method="predict_proba")
mml.ModelGraph([mml.ModelNode("bayes", model, fs)])
experiment = mml.Experiment.from_active_context("diagnosis")
experiment.run_phase(mml.FitPhase.from_split("fit", split="train"))

print(experiment.evaluate("test", metrics=["accuracy", "log_loss", "brier_score_loss"]).round(3))
tested = experiment.run_phase(mml.EvalPhase.from_split("test", split="test"))
tested.plot(kind="calibration", positive="malignant", n_bins=6, title="Naive Bayes")
