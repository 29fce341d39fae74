"""Devices: a pausable clock and the peak memory of one trial.

    with clock.pause():
        evaluate(...)

`Device` is the only interface to the hardware. Accelerators are used through torch.accelerator. This has not
been run on a GPU yet: its logic is tested with a fake backend.
"""

from __future__ import annotations

import ctypes
import platform
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch

from harness.core.errors import UserError

MIB = 2**20
DEVICES = ("auto", "cpu", "cuda", "mps")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


class Clock:
    """A clock that runs from its creation and can be paused.

    Args:
        synchronize: waits until the device has finished all queued work.
        counted: seconds counted before, if this clock continues an earlier one.
    """

    def __init__(self, synchronize: Callable[[], None], counted: float = 0.0) -> None:
        self._synchronize = synchronize
        self._counted = counted
        self._paused = False
        self._since = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds counted so far; waits for the device."""
        if self._paused:
            return self._counted
        self._synchronize()
        return self._counted + time.perf_counter() - self._since

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Do not count the time inside the block. Blocks cannot be nested."""
        if self._paused:
            raise RuntimeError("the clock is already paused")
        self._counted = self.seconds
        self._paused = True
        try:
            yield
            self._synchronize()
        finally:
            self._paused = False
            self._since = time.perf_counter()


class Seconds:
    """Training time: that of the clock, plus that of outputs of frozen groups, which may come from the cache.

    Attributes:
        counted: seconds by the clock, which is paused while outputs of frozen groups are computed or read;
            None before the first epoch has ended.
    """

    def __init__(self) -> None:
        self.counted: float | None = None
        self._paid = 0.0
        self._cold: dict[tuple[str, str], float] = {}

    def add(self, part: str, key: str, paid: float, cold: float) -> None:
        """Add the time for the outputs of a part of the split; outputs that were already added do not count.

        Args:
            part: part of the split.
            key: key of the outputs.
            paid: seconds spent now.
            cold: seconds with an empty cache.
        """
        self._paid += paid
        self._cold[part, key] = cold

    @property
    def cold(self) -> float:
        """Seconds of training with a cache that is empty before this trial."""
        return (self.counted or 0.0) + sum(self._cold.values())

    @property
    def marginal(self) -> float:
        """Seconds that this trial itself spent."""
        return (self.counted or 0.0) + self._paid

    def state_dict(self) -> dict[str, Any]:
        """Everything that was counted."""
        return {"counted": self.counted, "paid": self._paid, "cold": dict(self._cold)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue counting from a state."""
        self.counted, self._paid, self._cold = state["counted"], state["paid"], dict(state["cold"])


@dataclass(frozen=True)
class Device(ABC):
    """The hardware on which a trial runs, with its synchronisation and memory.

    Attributes:
        torch_device: the device as torch knows it.
        room: bytes of examples that may stay on the device during a trial (`harness.training.resident`).
    """

    torch_device: torch.device
    # Not compared: what is kept for each device is not kept for each room.
    room: int = field(default=0, kw_only=True, compare=False)

    @property
    def name(self) -> str:
        """E.g. "cpu" or "cuda:0"."""
        return str(self.torch_device)

    @abstractmethod
    def describe(self) -> str:
        """A description of the hardware."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until all work queued on the device is done."""

    @abstractmethod
    def reset_peak(self) -> None:
        """Start a new measurement of `peaks`."""

    @abstractmethod
    def peaks(self) -> dict[str, float]:
        """Peak memory in MiB, by name of the metric; metrics that cannot be measured are absent."""

    @abstractmethod
    def free_memory(self) -> int:
        """Free bytes of a memory of its own; 0 if it has none, as a CPU, or if that is not known."""


@final
@dataclass(frozen=True)
class Cpu(Device):
    """The CPU; its peak is the resident memory of this process (Linux only)."""

    torch_device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    proc: Path = Path("/proc/self")

    def describe(self) -> str:
        try:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            return next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
        except (OSError, StopIteration):
            return platform.processor() or platform.machine()

    def synchronize(self) -> None:
        pass

    def reset_peak(self) -> None:
        if sys.platform == "linux":
            # Otherwise memory that earlier trials freed and the allocator kept would count.
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if trim is not None:
                trim(0)
        with suppress(OSError):
            (self.proc / "clear_refs").write_text("5")

    def peaks(self) -> dict[str, float]:
        try:
            status = (self.proc / "status").read_text()
        except OSError:
            return {}
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                return {"peak_process_rss_mib": int(line.split()[1]) / 1024}
        return {}

    def free_memory(self) -> int:
        return 0


@final
@dataclass(frozen=True)
class Accelerator(Device):
    """A GPU or another accelerator; `backend` is torch.accelerator, or a fake in tests."""

    backend: Any = torch.accelerator

    def describe(self) -> str:
        if self.torch_device.type == "cuda" and torch.cuda.is_available():
            return torch.cuda.get_device_name(self.torch_device)
        return self.torch_device.type

    def synchronize(self) -> None:
        self.backend.synchronize()

    def reset_peak(self) -> None:
        self._return_unused()
        if hasattr(self.backend, "reset_peak_memory_stats"):
            self.backend.reset_peak_memory_stats()

    def peaks(self) -> dict[str, float]:
        names = {
            "peak_accelerator_allocated_mib": "max_memory_allocated",
            "peak_accelerator_reserved_mib": "max_memory_reserved",
        }
        found = {}
        for metric, function in names.items():
            try:
                value = getattr(self.backend, function)()
            except (AttributeError, RuntimeError, NotImplementedError):
                continue  # mps, for instance, does not measure peaks
            if value > 0:
                found[metric] = value / MIB
        return found

    def free_memory(self) -> int:
        self._return_unused()
        try:
            return int(self.backend.get_memory_info(self.torch_device)[0])
        except (AttributeError, RuntimeError, NotImplementedError):
            return 0

    def _return_unused(self) -> None:
        """Give the memory that earlier trials freed back to the device."""
        if hasattr(self.backend, "empty_cache"):
            self.backend.empty_cache()


def keep_freed_memory() -> None:
    """Let this process reuse freed memory for new tensors (glibc only; elsewhere nothing happens).

    By default glibc returns every large block to the system, which then has to clear each page again: this
    takes an eighth of the time of fine-tuning on a CPU. `Cpu.reset_peak` still returns the memory between
    trials.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in ((_M_MMAP_THRESHOLD, 2**30), (_M_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(parameter, value)


def choose_accelerator(number: int) -> None:
    """Select the accelerator that `resolve_device` returns in this process; without accelerators, do nothing.

    Args:
        number: index of the accelerator, modulo their number.
    """
    if count := torch.accelerator.device_count():
        torch.accelerator.set_device_index(number % count)


def resolve_device(name: str) -> Device:
    """The device of that name; "auto" takes an accelerator if there is one.

    Raises:
        UserError: if the name is unknown or this machine has no such device.
    """
    if name not in DEVICES:
        raise UserError(f"unknown device {name!r}; choose from {', '.join(DEVICES)}")
    found = torch.accelerator.current_accelerator(check_available=True)
    if name == "cpu" or (name == "auto" and found is None):
        keep_freed_memory()
        return Cpu()
    if found is None or (name != "auto" and found.type != name):
        have = "cpu" if found is None else f"cpu and {found.type}"
        raise UserError(
            f"device {name} is not available: this machine has {have}; use --device auto"
        )
    return Accelerator(torch.device(found.type, torch.accelerator.current_device_index()))
