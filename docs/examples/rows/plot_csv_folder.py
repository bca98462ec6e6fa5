"""
Read a folder of CSV files
==========================

Each file is one battery cell. ``stack`` makes one array column of the twenty voltages, and
``file_as`` keeps the name of the file as a tag, by which you can split and score. The data are
synthetic.

**For your data:** replace ``folder`` by a folder, a pattern or a list of files, and name your
columns. Guide: :doc:`/howto/28_files`.
"""

# sphinx_gallery_alt = "Bars of health by cell: the mean over cycles, with a dot for each cycle."
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

import modularml as mml
from modularml.plotting import bars

rng = np.random.default_rng(0)
folder = Path(tempfile.mkdtemp())
for cell in range(1, 11):
    health = 1 - rng.uniform(0.002, 0.006) * np.arange(0, 40, 4)
    curves = 4.2 - np.linspace(0, 1, 20) / health[:, None]
    table = pd.DataFrame(curves).add_prefix("v").assign(health=health)
    table.to_csv(folder / f"cell_{cell}.csv", index=False)

fs = mml.FeatureSet.from_csv(
    "cells", folder, "voltage", "health", stack={"voltage": "v*"}, file_as="cell"
)
cells, health = fs.get_tags()["cell"], fs.get_targets()["health"]
print(len(fs), "curves of shape", fs.get_features()["voltage"].shape[1:])
bars({cell: health[cells == cell] for cell in fs.get_tags()["cell"][::10]}, x="health")
