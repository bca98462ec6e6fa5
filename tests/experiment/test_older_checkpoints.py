"""Checkpoints of versions whose phases had fewer arguments, and hashes without defaults."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path

import pytest

import modularml as mm
from modularml.errors import ConfigError
from modularml.experiment.resume import _ADDED, config_hash, earlier_hashes
from tests.older_run import QUIET, older_run

GOLDEN = Path(__file__).parents[1] / "golden" / "older_run"
PATH = "epoch_0001.ckpt.mml"


@pytest.fixture
def folder(tmp_path):
    """Return a folder with the files of a run that a version without ``freeze`` wrote."""
    shutil.copytree(GOLDEN, tmp_path / "train")
    return tmp_path


def test_a_run_resumes_from_a_checkpoint_of_a_version_with_fewer_arguments(folder, tmp_path):
    """Add what a class gains to `_ADDED`, and to `_MOVED` where it goes."""
    never, resumed = older_run(tmp_path / "never"), older_run(folder)
    never.run(**QUIET)
    resumed.run(resume=folder / "train" / PATH, **QUIET)
    ours, theirs = (made.last_run.to_pandas() for made in (resumed, never))
    assert list(ours.index) == list(theirs.index)
    for column in ("train_loss", "val_loss"):  # written on another machine
        assert ours[column].to_numpy() == pytest.approx(theirs[column].to_numpy(), rel=1e-5)
    written = mm.Experiment.inspect(folder / "train" / "epoch_0003.ckpt.mml")
    assert len(written["runs"][0]["metrics"]) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [("limit_batches", 2), ("freeze", ["net"]), ("accumulate", 2), ("n_epochs", 5)],
)
def test_another_value_than_the_default_is_refused(folder, name, value):
    made = older_run(folder)
    setattr(made.execution_plan.get_phase("train"), name, value)
    with pytest.raises(ConfigError, match="another config"):
        made.run(resume=folder / "train" / PATH, **QUIET)
    assert not made.history


@pytest.mark.parametrize("value", [None, 3])
def test_an_argument_that_a_phase_gains_changes_no_hash_at_its_default(tmp_path, value):
    made = older_run(tmp_path)
    params = made.execution_plan.get_phase("train")._params()

    class _Phase(mm.TrainPhase):
        pass

    class _Later(_Phase):
        later = value

        def _params(self):
            return {**super()._params(), "later": self.later}

    _Later.__signature__ = signature_with_later()
    _Later.__qualname__ = _Phase.__qualname__
    hashes = []
    for cls in (_Phase, _Later):
        made.execution_plan.clear().add_phase(cls(**params))
        hashes.append(config_hash(made, made.execution_plan))
    assert (hashes[0] == hashes[1]) == (value is None)


def signature_with_later():
    """Return the signature of a training phase with one more argument."""
    own = inspect.signature(mm.TrainPhase)
    later = inspect.Parameter("later", inspect.Parameter.KEYWORD_ONLY, default=None)
    return own.replace(parameters=[*own.parameters.values(), later])


def test_hashes_of_older_versions_differ_by_the_arguments_they_had(tmp_path):
    made = older_run(tmp_path)
    hashes = list(earlier_hashes(made, made.execution_plan))
    assert hashes[0] == config_hash(made, made.execution_plan, ())
    assert 3 < len(set(hashes)) <= len(_ADDED) + 1
