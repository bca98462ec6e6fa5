"""A loop that tells of itself: events, and callbacks that listen to them.

::

    runner = Runner()

    @runner.on(Event.BATCH)
    def step(state):
        state["output"] = train_on(state["batch"])

    MeanReducer("loss").attach_on(runner)
    runner.run(batches, max_epoch=10)
"""

from modularml.runner.events import Event, EventError, Listeners
from modularml.runner.runner import Runner
from modularml.runner.saving import read_saved, write_safely

__all__ = ["Event", "EventError", "Listeners", "Runner", "read_saved", "write_safely"]
