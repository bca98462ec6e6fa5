"""Two processes that train together equal one with batches of twice the size."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import modularml as mm
from modularml.backends import StepOptions
from modularml.callbacks import EMA, GradientNorms, MaxTime
from modularml.engine.batch_schedule import share
from modularml.errors import ConfigError
from modularml.samplers import EpochBatches
from tests.worlds import QUIET, arrays, experiment, featureset, mlp, train_phase

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from tests.experiment.test_data_parallel import run
run(sys.argv[1], "cpu", batch_size=8, data_parallel=True)
"""


def run(folder, device, *, batch_size, data_parallel):
    """Train in three phases and write weights, losses and which process wrote."""
    x, y = arrays(n=70)  # nine batches of 8: the last step has but one
    enc = mm.ModelNode("enc", mlp(out=4, seed=1), featureset(x, y))
    net = mm.ModelNode("net", mlp(d=4, seed=2), enc)
    opt = mm.Optimizer("sgd", opt_kwargs={"lr": 0.05, "momentum": 0.9}, clip_norm=2.0)
    graph = mm.ModelGraph([enc, net], opt)
    where = mm.Accelerator(device, data_parallel=data_parallel)
    exp = experiment()
    exp.set_checkpoint_dir(folder)
    found = {}
    watch = [EMA(0.5), GradientNorms(), MaxTime("1h")]
    extras = {"freeze": ["enc"], "callbacks": watch, "limit_batches": 3 * 16 // batch_size}
    for label, more in [
        ("plain", {}),
        ("together", {"accumulate": 3}),
        ("extras", extras),
        ("frozen", {}),
    ]:
        if label == "frozen":
            enc.freeze()
        keep = mm.Checkpointing(mode="disk", save_on=["phase_end"])
        phase = train_phase(
            graph,
            label=label,
            batch_size=batch_size,
            shuffle=True,
            n_epochs=2,
            accelerator=where,
            checkpointing=keep,
            **more,
        )
        results = exp.run_phase(phase, **QUIET)
        found[f"{label} losses"] = [results._metrics.epoch_value("train_loss", e) for e in (0, 1)]
        blocks = [rows for _, rows in results._metrics.blocks("train_loss")]
        found[f"{label} losses of batches"] = np.concatenate(blocks)
        if label == "extras":
            found["norms"] = results.to_pandas()["grad_norm"].to_numpy()
        for node in (enc, net):
            for name, values in node.model.get_weights().items():
                found[f"{label} {node.label} {name}"] = values
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else "alone"
    drawn = train_phase(graph, label="own seed", seed=None, shuffle=True, accelerator=where)
    exp.run_phase(drawn, **QUIET)
    found["own seed"] = next(iter(net.model.get_weights().values()))
    np.savez(Path(folder) / f"{rank}.npz", main=where.is_main, **found)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    job = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for _ in range(2):  # torch's threads now and then abort a process that exits
        done = subprocess.run(
            [*job, str(script), str(tmp_path)],
            check=False,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=200,
        )
        if "terminate called without an active exception" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr[-3000:]
    (tmp_path / "one").mkdir()
    run(tmp_path / "one", "cpu", batch_size=16, data_parallel=False)
    zero, one = (np.load(tmp_path / f"{rank}.npz") for rank in (0, 1))
    alone = np.load(tmp_path / "one" / "alone.npz")
    for name in alone.files:
        if name == "main":
            continue
        np.testing.assert_array_equal(zero[name], one[name], err_msg=name)
        if name != "own seed":
            np.testing.assert_allclose(zero[name], alone[name], atol=1e-6, err_msg=name)
    assert (bool(zero["main"]), bool(one["main"])) == (True, False)
    kept = sorted(p.parent.name for p in tmp_path.glob("*/*.ckpt.mml"))
    assert kept == ["extras", "frozen", "plain", "together"]


class Two:
    size = 2

    def __init__(self, rank):
        self.rank = rank


def test_batches_are_dealt_in_turn():
    rows = {"default": np.arange(10)}
    epoch = EpochBatches(rows, np.array([0, 4, 8, 10]))
    (first,), counts = share([epoch], np.array([4.0, 4.0, 2.0]), Two(0))
    assert first.rows["default"].tolist() == [0, 1, 2, 3, 8, 9]
    assert counts == [(4.0, 4.0), (2.0, 1.0)]
    (second,), counts = share([epoch], np.array([4.0, 4.0, 2.0]), Two(1))
    assert second.rows["default"].tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    assert counts == [(4.0, 4.0), (0.0, 1.0)]


def test_a_lone_process_trains_as_ever(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert mm.Accelerator("cpu", data_parallel=True).processes(None) is None
    assert mm.Accelerator("cpu", data_parallel=True).is_main


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(ConfigError, match="on_nonfinite"):
        StepOptions(on_nonfinite="skip", parallel=True)
