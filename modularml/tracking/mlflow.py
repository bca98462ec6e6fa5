"""Logging of runs to MLflow: a folder, a database or a server."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from modularml._optional import require
from modularml.tracking.tracked_run import Point
from modularml.tracking.tracker import Tracker, shown

_STATUS = {"completed": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_MOST_PARAMS, _MOST_METRICS = 100, 1000  # of one request
_LONGEST_KEY, _LONGEST_VALUE = 250, 6000


class MLflowTracker(Tracker):
    """Log runs to `MLflow <https://mlflow.org>`_.

    Folds, members and trials are child runs. Characters that MLflow refuses in names, such as the
    brackets of ``accuracy[a]``, become ``_``.

    Parameters
    ----------
    tracking_uri : str or Path, optional
        A folder, which holds a database ``mlflow.db`` and files; or a URI, such as that of a server
        (``http://...``) or of a database (``sqlite:///...``). By default that of MLflow: the
        environment variable ``MLFLOW_TRACKING_URI`` or ``mlflow.db`` in the working directory.
    experiment_name : str, optional
        MLflow's experiment that runs belong to; by default the label of the experiment.
    name, parent, artifacts, rows, timeout, every_seconds, label, execution_order
        See `Tracker`. A `parent` is the id of a run.

    Notes
    -----
    Arguments are config, and so in the files of an experiment. Give passwords to MLflow by the
    environment (``MLFLOW_TRACKING_USERNAME``), not in the URI.

    MLflow repeats requests to a server that does not answer for some minutes, in its thread; the
    run ends after `timeout`.

    Examples
    --------
    ``Experiment("cells", callbacks=[MLflowTracker("runs")])``, then
    ``mlflow ui --backend-store-uri sqlite:///runs/mlflow.db``

    Examples
    --------
    >>> tracker = MLflowTracker("sqlite:///runs.db", experiment_name="cells")
    >>> tracker.experiment_name
    'cells'
    """

    package = "mlflow"

    def __init__(
        self,
        tracking_uri: str | Path | None = None,
        *,
        experiment_name: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.tracking_uri, self.experiment_name = tracking_uri, experiment_name

    @staticmethod
    def as_key(name: str) -> str:
        """Return the name that MLflow accepts for a metric or parameter."""
        return re.sub(r"[^\w\-./ ]", "_", name, flags=re.ASCII)[:_LONGEST_KEY]

    def open_store(self, name: str, run_id: str, experiment: str) -> MLflowRun:
        """Create or reopen a run; see `Tracker.open_store`."""
        uri, folder = self.tracking_uri, None
        if uri is not None and "://" not in str(uri):
            folder = Path(uri).absolute()
            folder.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{(folder / 'mlflow.db').as_posix()}"
        if str(uri).startswith("http"):
            parts = urlsplit(str(uri))  # an error at once; MLflow itself would try for minutes
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname or "", port), self.timeout).close()
        client = require("mlflow").MlflowClient(uri)
        if run_id:
            client.update_run(run_id, status="RUNNING")
            return MLflowRun(client, run_id)
        tags = {"mlflow.source.name": "modularml", "mlflow.source.type": "LOCAL"}
        if self.parent:
            tags["mlflow.parentRunId"] = self.parent
            experiment_id = client.get_run(self.parent).info.experiment_id
        else:
            files = None if folder is None else (folder / "files").as_uri()
            label = self.experiment_name or experiment
            if (known := client.get_experiment_by_name(label)) is None:
                try:
                    client.create_experiment(label, artifact_location=files)
                except require("mlflow.exceptions").MlflowException:  # another process was first
                    if client.get_experiment_by_name(label) is None:
                        raise
                known = client.get_experiment_by_name(label)
            experiment_id = known.experiment_id
        run = client.create_run(experiment_id, tags=tags, run_name=name)
        return MLflowRun(client, run.info.run_id)


class MLflowRun:
    """A run of MLflow; see `modularml.tracking.tracked_run.Store`."""

    def __init__(self, client: Any, run_id: str) -> None:
        self.client, self.run_id, self.group = client, run_id, run_id

    def logged_steps(self) -> Mapping[str, Iterable[int]]:
        """Return the steps that the run holds, by metric as MLflow calls it."""
        names = self.client.get_run(self.run_id).data.metrics
        history = self.client.get_metric_history
        return {name: [m.step for m in history(self.run_id, name)] for name in names}

    def write_params(self, params: Mapping[str, Any]) -> None:
        """Write parameters; texts of more than 6,000 characters are cut."""
        make = require("mlflow.entities").Param
        as_key = MLflowTracker.as_key
        made = [make(as_key(k), shown(v, _LONGEST_VALUE)) for k, v in params.items()]
        for i in range(0, len(made), _MOST_PARAMS):
            self.client.log_batch(self.run_id, params=made[i : i + _MOST_PARAMS])

    def write_points(self, points: list[Point]) -> None:
        """Write values of metrics."""
        make = require("mlflow.entities").Metric
        made = [make(p.name, p.value, int(p.time * 1000), p.step) for p in points]
        for i in range(0, len(made), _MOST_METRICS):
            self.client.log_batch(self.run_id, metrics=made[i : i + _MOST_METRICS])

    def write_file(self, path: Path) -> None:
        """Write a file."""
        self.client.log_artifact(self.run_id, str(path))

    def close(self, status: str) -> None:
        """End the run."""
        self.client.set_terminated(self.run_id, _STATUS[status])
