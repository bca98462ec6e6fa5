"""Ranges and choices for the settings of a `Sweep`.

A space maps config paths to these, or to plain lists::

    space = {
        "graph.optimizer.lr": mml.space.log_float(1e-4, 1e-1),
        "nodes.net.hidden_dim": [16, 32, 64],
        "phases.train.sampler.batch_size": mml.space.int_(16, 128, step=16),
    }
"""

from modularml.strategies.sweeps.space import Choice, Float, Int, choice, float_, int_, log_float

__all__ = ["Choice", "Float", "Int", "choice", "float_", "int_", "log_float"]
