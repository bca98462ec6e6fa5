"""Data-parallel training of torch models with ``torchrun``."""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from typing import Any

import torch

from modularml.backends.base import Compute
from modularml.backends.tensor_operations import Processes

__all__ = ["Averaged", "TorchProcesses"]


class TorchProcesses(Processes):
    """The process group, initialized if needed."""

    def __init__(self, device: Any) -> None:
        dist = torch.distributed
        if not dist.is_initialized():
            if device.type == "cuda":
                torch.cuda.set_device(device)
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
            atexit.register(dist.destroy_process_group)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, ordered by rank."""
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values


class Averaged(torch.nn.Module):
    """Models and their loss as one module for ``DistributedDataParallel``.

    Only the loss is returned through the wrapper, which waits for gradients of everything it
    depends on.
    """

    def __init__(self, compute: Compute, models: Sequence[Any]) -> None:
        super().__init__()
        self.models, self.compute = torch.nn.ModuleList(models), compute
        self.rest: tuple[Any, Any] = ((), ())

    def forward(self, inputs: Sequence[Any]) -> Any:
        """Return the total loss, and store each loss and output."""
        total, *rest = self.compute(inputs)
        self.rest = (rest[0], rest[1])
        return total

    @classmethod
    def wrapped(cls, compute: Compute, models: Sequence[Any]) -> Any:
        """Wrap the models; all processes start from the weights of the first."""
        ddp = torch.nn.parallel.DistributedDataParallel
        return ddp(cls(compute, models), find_unused_parameters=True)
