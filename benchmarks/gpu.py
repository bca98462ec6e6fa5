"""``python -m benchmarks gpu``: training on a GPU, or its like on ``--device cpu``.

Times are of the wall on a GPU, after it has caught up, and of the CPU elsewhere. Loops by hand hold
rows and order on the device, and wait for no loss.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from typing import Any

import torch

from benchmarks.cases import LEARNING_RATE, N_ROWS, Data, table
from benchmarks.loops import loss_fn, mlp
from benchmarks.ours import columns, nodes
from benchmarks.timing import Times, interleave, one_thread, ratio
from modularml import (
    Accelerator,
    AppliedLoss,
    Experiment,
    FeatureSet,
    Loss,
    ModelGraph,
    Optimizer,
    PhaseGroup,
    SimpleSampler,
    TrainPhase,
)
from modularml.strategies.variants.runs import Work
from modularml.strategies.variants.variant import Variant

MEMBERS = (1, 10, 100)
SMALL, LARGE = 64, 4_096

Row = dict[str, Any]


class Job:
    """The MLP on a device, to be trained alone or with several seeds as one."""

    def __init__(
        self,
        data: Data,
        device: str,
        *,
        batch: int,
        epochs: int,
        precision: Any = "float32",
        pinned: bool = False,
    ) -> None:
        self.experiment = Experiment("gpu", registration_policy="overwrite")
        found = columns(data)
        inputs = [key for key in found if key != "y"]
        fs = FeatureSet.from_dict("rows", found, feature_keys=inputs, target_keys="y")
        fs.add_split(fs.take(range(len(fs)), label="train"))
        adam = Optimizer("adam", opt_kwargs={"lr": LEARNING_RATE})
        ModelGraph(nodes("mlp", fs, found, "torch"), adam).build()
        self.phase = TrainPhase.from_split(
            "train",
            split="train",
            sampler=SimpleSampler(batch_size=batch, shuffle=True, seed=0),
            losses=[AppliedLoss(Loss("mse"), on="head", inputs=["outputs", "targets"])],
            n_epochs=epochs,
            accelerator=Accelerator(device, pin_memory=pinned),
            precision=precision,
        )

    def run(self) -> float:
        """Train, and return the mean loss of the last epoch."""
        quiet = dict.fromkeys(("show_training_progress", "show_sampler_progress"), False)
        results = self.experiment.run_phase(self.phase, **quiet)
        loss: float = results.metrics().where(name="train_loss", batch=None).values()[-1]
        return loss

    def seeds(self, n: int) -> list[Any]:
        """Train members with several seeds as one, and return their experiments."""
        work = Work("gpu", {"show_training_progress": False})
        variants = [Variant(f"seed_{i}", i) for i in range(n)]
        plan = PhaseGroup("plan", [self.phase])
        with closing(work.outcomes(self.experiment, plan, variants, stacked=True)) as outcomes:
            found = [outcome for _, outcome in outcomes]
        if errors := [outcome for outcome in found if isinstance(outcome, Exception)]:
            raise errors[0]
        return found


def by_hand(
    data: Data, device: str, *, batch: int, epochs: int, bf16: bool = False, pinned: bool = False
) -> float:
    """Train the MLP and return the mean loss of the last epoch; pinned rows stay on the host."""
    at = "cpu" if pinned else device
    x, y = (torch.from_numpy(data[name]).to(at) for name in ("x", "y"))
    if pinned:
        x, y = x.pin_memory(), y.pin_memory()
    model = mlp().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    total = torch.zeros((), device=device)
    for _ in range(epochs):
        total.zero_()
        for rows in torch.randperm(len(x), device=at).split(batch):
            xb, yb = (t.index_select(0, rows) for t in (x, y))
            if pinned:
                xb, yb = (t.pin_memory().to(device, non_blocking=True) for t in (xb, yb))
            optimizer.zero_grad()
            with _autocast(device, bf16):
                loss = loss_fn(model(xb), yb)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(rows)
    return float(total.item()) / len(x)


def _autocast(device: str, bf16: bool) -> AbstractContextManager[Any]:
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=torch.bfloat16) if bf16 else nullcontext()


def by_graph(data: Data, device: str, *, batch: int, epochs: int) -> float:
    """Train the MLP by replaying one captured step of CUDA; rows that fill no batch are left."""
    x, y = (torch.from_numpy(data[name]).to(device) for name in ("x", "y"))
    model = mlp().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, capturable=True)
    xb, yb = x[:batch].clone(), y[:batch].clone()
    total = torch.zeros((), device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_fn(model(xb), yb)
        loss.backward()
        optimizer.step()
        total.add_(loss.detach())

    replay = _captured(step)
    n_batches = len(x) // batch
    for _ in range(epochs):
        total.zero_()
        for rows in torch.randperm(len(x), device=device)[: n_batches * batch].split(batch):
            torch.index_select(x, 0, rows, out=xb)
            torch.index_select(y, 0, rows, out=yb)
            replay()
    return float(total.item()) / n_batches


def _captured(step: Callable[[], None]) -> Callable[[], None]:
    """Return a function that replays a step, after three on another stream as torch asks."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    replay: Callable[[], None] = graph.replay
    return replay


def gpu(device: str = "cuda", *, quick: bool = False) -> list[Row]:
    """Measure all rows on a device; those that need CUDA have no value elsewhere.

    Raises
    ------
    SystemExit
        If the device is not there.
    """
    if not Accelerator(device).is_available():
        raise SystemExit(f"torch finds no device {device!r} here; pass --device cpu")
    one_thread()
    data, epochs = table(3_000 if quick else N_ROWS), 1 if quick else 5
    return [*_stacked(data, device, epochs, quick), *_alone(data, device, epochs, quick)]


def _stacked(data: Data, device: str, epochs: int, quick: bool) -> Iterator[Row]:
    job = Job(data, device, batch=SMALL, epochs=epochs)
    hand = partial(by_hand, data, device, batch=SMALL, epochs=epochs)
    for n in MEMBERS:
        works = {"hand": hand, "ours": partial(job.seeds, n)}
        times = _times(works, device, quick)
        how = "as one" if n > 1 else "alone"
        name = f"{n} members of the MLP, batch {SMALL}, {how}, against that many loops by hand"
        yield _row(name, ratio(times, "ours") / n)
        if _is_cuda(device):
            yield _row(f"the same, memory of the device (MiB), {n} members", _peak(works["ours"]))


def _alone(data: Data, device: str, epochs: int, quick: bool) -> Iterator[Row]:
    size = {"batch": LARGE, "epochs": 4 * epochs}
    for name, ours, theirs, needs_cuda in (
        ("MLP", {}, {}, False),
        ("MLP in bf16", {"precision": "bf16"}, {"bf16": True}, False),
        ("MLP, rows in pinned memory", {"pinned": True}, {"pinned": True}, True),
    ):
        title = f"{name}, batch {LARGE:,}, against a loop by hand"
        if needs_cuda and not _is_cuda(device):
            yield _row(f"{title} (needs cuda)", None)
            continue
        job = Job(data, device, **size, **ours)  # type: ignore[arg-type]
        hand = partial(by_hand, data, device, **size, **theirs)  # type: ignore[arg-type]
        yield _row(title, ratio(_times({"hand": hand, "ours": job.run}, device, quick), "ours"))
    title = f"MLP, batch {SMALL}, against a step by hand that a CUDA graph replays"
    if not _is_cuda(device):
        yield _row(f"{title} (needs cuda)", None)
        return
    job = Job(data, device, batch=SMALL, epochs=epochs)
    graph = partial(by_graph, data, device, batch=SMALL, epochs=epochs)
    yield _row(title, ratio(_times({"hand": graph, "ours": job.run}, device, quick), "ours"))


def _times(works: dict[str, Callable[[], Any]], device: str, quick: bool) -> Times:
    clock = partial(_caught_up, device) if _is_cuda(device) else time.process_time
    return interleave(works, repeats=1 if quick else 3, clock=clock)


def _caught_up(device: str) -> float:
    """Return the time of the wall once the device has done what it was given."""
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak(work: Callable[[], Any]) -> float:
    torch.cuda.reset_peak_memory_stats()
    work()
    return float(torch.cuda.max_memory_allocated()) / 2**20


def _is_cuda(device: str) -> bool:
    return torch.device(device.replace("gpu", "cuda")).type == "cuda"


def _row(work: str, value: float | None) -> Row:
    return {"work": work, "value": value, "limit": None, "ok": True}
