"""Races against hand-written loops and other libraries; `python -m benchmarks`.

One thread: the variables must be set before numpy or torch is imported for the first time.
"""

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
