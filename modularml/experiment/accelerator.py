"""Where a phase runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modularml.backends import Backend, adapter_for
from modularml.config import Configurable
from modularml.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    from modularml.graph.model_graph import ModelGraph

__all__ = ["Accelerator"]

_KINDS = ("cpu", "cuda", "gpu", "mps")


class Accelerator(Configurable):
    """A device by name.

    Parameters
    ----------
    device : str
        ``cpu``, ``cuda``, ``cuda:N``, ``gpu``, ``gpu:N`` or ``mps``.
    pin_memory : bool
        Must be False: columns lie on the device for a whole phase, so no batch is copied.

    Raises
    ------
    ConfigError
        If the name is none of these.
    """

    def __init__(self, device: str = "cpu", *, pin_memory: bool = False) -> None:
        kind, _, index = str(device).partition(":")
        if kind not in _KINDS or (index and (not index.isdigit() or kind in ("cpu", "mps"))):
            raise ConfigError(
                f"device must be cpu, cuda, cuda:N, gpu, gpu:N or mps, got {device!r}"
            )
        if pin_memory:
            raise ConfigError(
                "pin_memory must be False: whole columns lie on the device, so there are no copies "
                "of batches that pinned memory could speed up"
            )
        self.device, self.pin_memory = device, pin_memory

    @classmethod
    def from_value(cls, value: Accelerator | str | None) -> Accelerator | None:
        """Read an accelerator from a device name; None stays None."""
        if value is None or isinstance(value, Accelerator):
            return value
        return cls(value)

    @classmethod
    def cpu(cls) -> Accelerator:
        """Return the host."""
        return cls("cpu")

    @classmethod
    def cuda(cls, index: int = 0) -> Accelerator:
        """Return a CUDA device."""
        return cls(f"cuda:{index}")

    @classmethod
    def gpu(cls, index: int = 0) -> Accelerator:
        """Return a GPU, whatever its maker."""
        return cls(f"gpu:{index}")

    @classmethod
    def mps(cls) -> Accelerator:
        """Return Apple's GPU."""
        return cls("mps")

    def torch_device_str(self) -> str:
        """Return the name that torch knows the device by."""
        return str(self.device).replace("gpu", "cuda")

    def tf_device_str(self) -> str:
        """Return the name that TensorFlow knows the device by."""
        kind, _, index = str(self.device).partition(":")
        return "/CPU:0" if kind == "cpu" else f"/GPU:{index or 0}"

    def is_available(self) -> bool:
        """Tell whether torch finds the device."""
        try:
            adapter_for(Backend.TORCH).check_device(str(self.device))
        except DeviceError:
            return False
        return True

    def place(self, graph: ModelGraph) -> str:
        """Move a graph's weights and optimizers to the device and return its name.

        Raises
        ------
        DeviceError
            If the device is not there; nothing is moved then.
        """
        graph.move_to(str(self.device))
        return str(self.device)
