"""How a run is executed: device, precision, processes, signals."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from attnbench.base.allocator import keep_large_blocks
from attnbench.base.cores import cores
from attnbench.base.errors import ConfigError, Stopped
from attnbench.config.options import Count, Device, Positive, Precision, Several, Tail, Workers

log = logging.getLogger("attnbench")

SAME_SIGNAL = 1.0  # seconds within which repeated signals count as one
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class Runtime:
    """The options of the group ``runtime``.

    Attributes:
        device: ``auto`` (a CUDA device if there is one), ``cpu``, ``cuda`` or ``cuda:<n>``.
        precision: the precision of the forward pass; ``fp16`` scales the loss.
        compile: whether to compile the network.
        tail: how attention is computed; all choices are equal up to rounding, see ``attnbench.models.fused``.
        graph: whether to record a training step once as a CUDA graph and replay it, where that is possible; see
            ``attnbench.training.step``.
        channels_last: whether images and weights are stored as NHWC.
        processes: the number of processes of one run, with one GPU each. None means one process, or one for each GPU
            that a launcher assigns. Under torchrun, the run has the processes that torchrun started.
        workers: the number of processes that decode images. ``auto`` means one for each core that this process may use,
            which is also the maximum.
        deterministic: whether to use only algorithms that always give the same bits.
        norm_batch: the most images over which a batch norm may compute its statistics; each process splits its share of
            a batch into as many parts as that needs. 64 makes one GPU compute what four GPUs do with 64 images each.
        sync_bn: whether batch norm is synchronised over all processes.
        checkpoint_minutes, checkpoint_steps: how often to save within an epoch.
    """

    device: Device = "auto"
    precision: Precision = "fp32"
    compile: bool = False
    tail: Tail = "auto"
    graph: bool = False
    channels_last: bool = True
    processes: Count | None = None
    workers: Workers = "auto"
    deterministic: bool = False
    norm_batch: Several | None = None
    sync_bn: bool = False
    checkpoint_minutes: Positive = 10.0
    checkpoint_steps: Count | None = None

    def check(self) -> None:
        """Refuse options that this machine cannot satisfy.

        Raises:
            ConfigError: the device does not exist, there are fewer GPUs than processes, or ``sync_bn`` is set without
                CUDA.
        """
        cuda = self._enough_for_all() if self.missing else _device(self.device).type == "cuda"
        if self.sync_bn and not cuda:
            raise ConfigError("synchronised batch norm needs CUDA", "runtime.sync_bn", "set it to false")

    @property
    def world_size(self) -> int:
        """The number of processes of the run, including those that are still to be started."""
        return self.missing or world_size()

    @property
    def missing(self) -> int:
        """The number of processes still to be started; 0 if this is the only one, or if torchrun has started them."""
        return (self.processes or 1) if (self.processes or 1) > 1 and "WORLD_SIZE" not in os.environ else 0

    def _enough_for_all(self) -> bool:
        """Whether there is a GPU for each process, counted without occupying one; False on the CPU."""
        there = torch.cuda.device_count()
        if self.device == "cpu" or (self.device == "auto" and not there):
            return False
        if ":" in self.device:
            what = f"{self.processes} processes cannot share {self.device}"
            raise ConfigError(what, "runtime.device", "use runtime.device=cuda")
        if there < self.missing:
            todo = f"there are {there}: use fewer processes, or runtime.device=cpu"
            raise ConfigError(f"{self.processes} processes need a GPU each", "runtime.processes", todo)
        return True

    @contextmanager
    def start(self) -> Iterator[Process]:
        """Start this process of the run; if torchrun started several, connect it to the others."""
        device = _device(self.device)
        if device.type == "cpu":
            keep_large_blocks()
        torch.backends.cudnn.benchmark = not self.deterministic
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(self.deterministic)
        control = _join(device)
        try:
            yield Process(self, device, control)
        finally:
            torch.use_deterministic_algorithms(False)
            if control is not None:
                dist.destroy_process_group()


def rank() -> int:
    """This process's rank in the run; 0 without torchrun."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """The number of processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("there is no CUDA device", "runtime.device", "use runtime.device=cpu or auto")
        index = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", 0))
        if index >= torch.cuda.device_count():
            todo = f"use an index below {torch.cuda.device_count()}"
            raise ConfigError(f"there is no cuda:{index}", "runtime.device", todo)
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return device


def _join(device: torch.device) -> Any:
    """A group for control messages, over gloo so that they never wait for the GPU; None in a single process."""
    if world_size() == 1:
        return None
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return dist.new_group(backend="gloo")


class Process:
    """One process of a run, and its communication with the others.

    Attributes:
        stop_requested: whether a signal has asked the run to stop.
        packed: the number of runs that this process trains at once.
    """

    packed = 1

    def __init__(self, runtime: Runtime, device: torch.device, control: Any) -> None:
        self.runtime = runtime
        self.device = device
        self.control = control
        self.rank, self.world_size = rank(), world_size()
        self.main = self.rank == 0
        self.stop_requested = False
        self.ddp: nn.parallel.DistributedDataParallel | None = None

    @property
    def workers(self) -> int:
        """The number of processes that decode images, at most one for each core."""
        most, asked = cores(), self.runtime.workers
        if asked != "auto" and asked > most and self.main:
            log.info("runtime.workers=%d: using %d, one for each core", asked, most)
        return most if asked == "auto" else min(asked, most)

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format of the network and of its images."""
        return torch.channels_last if self.runtime.channels_last else torch.contiguous_format

    @property
    def reduced(self) -> torch.dtype | None:
        """The dtype that autocast computes in; None for fp32."""
        dtype = DTYPES[self.runtime.precision]
        return None if dtype == torch.float32 else dtype

    def autocast(self) -> torch.autocast:
        """The autocast context of the forward pass; disabled for fp32."""
        return torch.autocast(self.device.type, self.reduced, enabled=self.reduced is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """The loss scaler; enabled only for fp16."""
        return torch.amp.GradScaler(self.device.type, enabled=self.runtime.precision == "fp16")

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model to the device, in the run's memory format; with ``sync_bn``, synchronise its batch norms."""
        if self.runtime.sync_bn:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return model.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as the training step calls it: compiled in place, and in DDP if there are other processes."""
        if self.runtime.compile:
            model.compile()
        if self.world_size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        self.ddp = nn.parallel.DistributedDataParallel(model, device_ids=ids)
        return self.ddp

    def gradients(self, *, last: bool) -> AbstractContextManager[None]:
        """The context for the forward and backward pass of one part of a batch.

        Args:
            last: whether this is the batch's last part. Only then do the processes exchange gradients, for all parts.
        """
        return nullcontext() if last or self.ddp is None else self.ddp.no_sync()

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.control is not None:
            dist.all_reduce(tensor)
        return tensor

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        return self.total(tensor.clone()) / self.world_size

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set in any process."""
        if self.control is None:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(votes, dist.ReduceOp.MAX, group=self.control)
        return [bool(v) for v in votes]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        if self.control is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def share_buffers(self, model: nn.Module) -> None:
        """Copy the main process's batch norm statistics to the others, so that all evaluate the same network."""
        if self.control is not None:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Handle SIGTERM and SIGINT: the first asks for a stop after the current step, a second one exits at once.

        Repeats within one second count as the same signal. SLURM, for one, signals all processes, and torchrun then
        passes the signal on to them.
        """
        asked = math.inf

        def ask(number: int, frame: object) -> None:
            nonlocal asked
            if time.monotonic() > asked + SAME_SIGNAL:
                os._exit(Stopped.code)
            self.stop_requested, asked = True, min(asked, time.monotonic())

        kinds = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(kind, ask) for kind in kinds]
        try:
            yield
        finally:
            for kind, handler in zip(kinds, before, strict=True):
                signal.signal(kind, handler)
