"""Devices on which phases and nodes run."""

from __future__ import annotations

import os
from typing import Any

from modularml.backends.base import Backend, adapter_for
from modularml.backends.tensor_operations import Processes
from modularml.config import Configurable
from modularml.errors import BackendNotSupportedError, ConfigError, DeviceError

_KINDS = ("cpu", "cuda", "gpu", "mps")


class Accelerator(Configurable):
    """A device by name.

    Parameters
    ----------
    device : str
        ``cpu``, ``cuda``, ``cuda:N``, ``gpu``, ``gpu:N`` or ``mps``.
    pin_memory : bool
        For ``cuda``: columns stay on the host, and rows are copied to the device in pinned chunks
        while it computes. Otherwise whole columns are on the device during a phase, which is faster
        if they fit.
    data_parallel : bool
        Whether training phases split their batches among the processes started by ``torchrun``:
        each draws its own, and gradients are averaged. A single process trains as usual. With
        ``cuda`` each process uses the device of its ``LOCAL_RANK``.

    Raises
    ------
    ConfigError
        If the name is none of these, or memory is pinned for a device other than ``cuda``.

    Examples
    --------
    >>> Accelerator("cpu").is_available()
    True
    >>> Accelerator("cuda:1").torch_device_str()
    'cuda:1'
    """

    def __init__(
        self, device: str = "cpu", *, pin_memory: bool = False, data_parallel: bool = False
    ) -> None:
        kind, _, index = str(device).partition(":")
        if kind not in _KINDS or (index and (not index.isdigit() or kind in ("cpu", "mps"))):
            raise ConfigError(
                f"device must be cpu, cuda, cuda:N, gpu, gpu:N or mps, got {device!r}"
            )
        if pin_memory and kind not in ("cuda", "gpu"):
            raise ConfigError(
                f"pin_memory=True needs a cuda device, to which it speeds up copies; got {device!r}"
            )
        self.device, self.pin_memory, self.data_parallel = device, pin_memory, data_parallel

    @classmethod
    def from_value(cls, value: Accelerator | str | None) -> Accelerator | None:
        """Convert a device name to an accelerator; None stays None."""
        if value is None or isinstance(value, Accelerator):
            return value
        return cls(value)

    @classmethod
    def cpu(cls) -> Accelerator:
        """Return the host."""
        return cls("cpu")

    @classmethod
    def cuda(cls, index: int = 0, *, pin_memory: bool = False) -> Accelerator:
        """Return a CUDA device."""
        return cls(f"cuda:{index}", pin_memory=pin_memory)

    @classmethod
    def gpu(cls, index: int = 0, *, pin_memory: bool = False) -> Accelerator:
        """Return a GPU of any vendor."""
        return cls(f"gpu:{index}", pin_memory=pin_memory)

    @classmethod
    def mps(cls) -> Accelerator:
        """Return Apple's GPU."""
        return cls("mps")

    def torch_device_str(self) -> str:
        """Return torch's name of the device."""
        return str(self.device).replace("gpu", "cuda")

    def tf_device_str(self) -> str:
        """Return TensorFlow's name of the device."""
        kind, _, index = str(self.device).partition(":")
        return "/CPU:0" if kind == "cpu" else f"/GPU:{index or 0}"

    def is_available(self) -> bool:
        """Return whether torch finds the device."""
        try:
            adapter_for(Backend.TORCH).check_device(str(self.device))
        except DeviceError:
            return False
        return True

    @property
    def is_main(self) -> bool:
        """Whether this process writes files: the first of those that train together."""
        return not self.data_parallel or os.environ.get("RANK", "0") == "0"

    @property
    def name(self) -> str:
        """Name of the device of this process."""
        name, local_rank = str(self.device), os.environ.get("LOCAL_RANK")
        uses_rank = self.data_parallel and local_rank is not None and name in ("cuda", "gpu")
        return f"{name}:{local_rank}" if uses_rank else name

    def resolve(self, backend: Backend) -> Any:
        """Return the framework's device; DeviceError if it is not available."""
        return adapter_for(backend).check_device(self.name)

    def place(self, graph: Any) -> str:
        """Move a graph's weights and optimizers to the device and return its name.

        Raises
        ------
        DeviceError
            If the device is not available; nothing is moved then.
        """
        graph.move_to(self.name)
        return self.name

    def processes(self, graph: Any) -> Processes | None:
        """Return the processes that train a graph together; None for a single one."""
        if not self.data_parallel or int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return None
        first, *others = {n.backend for n in graph.nodes.values() if hasattr(n, "backend")}
        if others:
            raise BackendNotSupportedError("data_parallel needs nodes of one framework")
        return adapter_for(first).processes(self.resolve(first))
