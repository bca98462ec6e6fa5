"""
Windows of a time series
========================

``windows`` cuts overlapping windows out of each series; the target of a window is that of its
last row. The test split is the last fifth of each machine, and no window reaches into both
splits. The data are synthetic.

**For your data:** name the columns that identify a series and give its order; to ask about new
machines, split with ``group_by`` instead. Guide: :doc:`/howto/23_windows_and_time`.
"""

# sphinx_gallery_alt = "Residuals of the test windows over time, scattered around zero."
import numpy as np
import pandas as pd
from sklearn.linear_model import Ridge

import modularml as mml

rng = np.random.default_rng(0)
log = pd.concat(
    pd.DataFrame({"machine": f"m{i}", "hour": np.arange(300), "wear": np.linspace(0, i, 300)})
    for i in range(1, 5)
)
log["vibration"] = log["wear"] + np.sin(log["hour"] / 4) + rng.normal(0, 1.0, len(log))

rows = mml.FeatureSet.from_pandas(
    "log", log, "vibration", "wear", tag_cols=["machine", "hour"], register=False
)
windows = rows.windows(
    "vibration", length=25, step=5, series="machine", order="hour", target="last", label="windows"
)
windows.split_by_condition(
    {
        "train": {"window_stop": lambda stop: stop <= 240},
        "test": {"window_start": lambda start: start >= 240},
    }
)
windows.audit(allow=["shared_groups", "time_order"])  # machines are known, and we forecast
mml.ModelGraph([mml.ModelNode("ridge", Ridge(), windows)])
experiment = mml.Experiment.from_active_context("wear")
experiment.run_phase(mml.FitPhase.from_split("fit", split="train"))

scores = experiment.evaluate("test", metrics=["rmse", "r2"])
print(scores.round(2))
scores.plot("residuals", over="hour")
