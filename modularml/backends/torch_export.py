"""Torch functions of named columns as `torch.export` programs and ONNX files."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from modularml._optional import require
from modularml._typing import Array

torch = require("torch", purpose="to train torch models")

Function = Callable[[Mapping[str, Any]], dict[str, Any]]


class _Predictor(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A function of named columns, with the modules whose weights it uses."""

    def __init__(self, modules: Sequence[Any], function: Function) -> None:
        super().__init__()
        self.nodes = torch.nn.ModuleList(modules)
        self._function = function

    def forward(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        return self._function(columns)


def traced(modules: Sequence[Any], function: Function, columns: Mapping[str, Array]) -> Any:
    """Return the program of a function of columns for any number of rows.

    Parameters
    ----------
    modules : sequence of torch.nn.Module
        In evaluation mode, on the CPU.
    function : callable
        Maps tensors by column to tensors by output.
    columns : mapping of str to ndarray, shape (n, *shape)
        An example of at least two rows.
    """
    rows = torch.export.Dim("rows", min=1)
    example = {name: torch.as_tensor(values) for name, values in columns.items()}
    shapes = {"columns": {name: {0: rows} for name in example}}
    predictor = _Predictor(modules, function)
    predictor.training = False  # not that of its modules, which have a mode of their own
    trace = partial(torch.export.export, predictor, (example,), dynamic_shapes=shapes)
    with torch.no_grad(), quiet():
        try:
            return trace()
        except Exception:  # noqa: BLE001 - whatever torch raises
            return trace(strict=True)  # which reads Python code, such as len(x)


def program_bytes(program: Any) -> bytes:
    """Return a program as the bytes of a ``.pt2`` file."""
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer)
    return buffer.getvalue()


def onnx_bytes(
    program: Any, inputs: Sequence[str], outputs: Sequence[str], facts: Mapping[str, str]
) -> bytes:
    """Return a program as the bytes of an ONNX file with named inputs and outputs."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, purpose="to export to ONNX")
    with quiet():
        model = torch.onnx.export(
            program,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamo=True,
            verbose=False,
        ).model_proto
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=value)
    data: bytes = model.SerializeToString()
    return data


def run_program(path: Path, columns: Mapping[str, Array]) -> dict[str, Array]:
    """Run a ``.pt2`` file on columns."""
    with torch.no_grad(), quiet():
        module = torch.export.load(path).module()
        outs = module({name: torch.as_tensor(values) for name, values in columns.items()})
    return {name: out.numpy() for name, out in outs.items()}


def run_onnx(path: Path, columns: Mapping[str, Array]) -> dict[str, Array]:
    """Run an ONNX file on columns, on the CPU."""
    ort = require("onnxruntime", purpose="to run ONNX files")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [out.name for out in session.get_outputs()]
    read = {node.name for node in session.get_inputs()}
    outs = session.run(names, {name: np.asarray(columns[name]) for name in read})
    return dict(zip(names, outs, strict=True))


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what exporters say about their own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
