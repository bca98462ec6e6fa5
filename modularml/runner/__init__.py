"""A loop that emits events, and its callbacks.

::

    runner = Runner()

    @runner.on(Event.BATCH)
    def step(state):
        state["output"] = train_on(state["batch"])

    MeanReducer("loss").attach_on(runner)
    runner.run(batches, max_epoch=10)
"""

from modularml.loops.runner import Event, EventError, Listeners, Runner
from modularml.runner.callbacks import read_saved, write_safely

__all__ = ["Event", "EventError", "Listeners", "Runner", "read_saved", "write_safely"]
