"""Devices: a pausable clock and the peak memory of one trial.

    with clock.pause():
        evaluate(...)

`Device` is the one interface to whatever computes. Accelerators go through torch.accelerator, which has
not been run on a GPU yet: its logic is tested with a fake backend.
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
    """Seconds that count. Runs from its creation; `pause` stops it by name of the block it wraps.

    Args:
        synchronize: waits until the device has finished what was asked of it.
        counted: seconds counted before, by a clock that this one goes on from.
    """

    def __init__(self, synchronize: Callable[[], None], counted: float = 0.0) -> None:
        self._synchronize = synchronize
        self._counted = counted
        self._paused = False
        self._since = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Counted so far, the device synchronised."""
        if self._paused:
            return self._counted
        self._synchronize()
        return self._counted + time.perf_counter() - self._since

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Nothing inside is counted. Does not nest."""
        if self._paused:
            raise RuntimeError("the clock is paused already")
        self._counted = self.seconds
        self._paused = True
        try:
            yield
            self._synchronize()
        finally:
            self._paused = False
            self._since = time.perf_counter()


class Seconds:
    """What training took: by the clock, and for outputs of frozen groups that another trial may have made.

    Attributes:
        counted: by the clock, which stands still while outputs of frozen groups are made or looked up;
            None before the first epoch has ended.
    """

    def __init__(self) -> None:
        self.counted: float | None = None
        self._paid = 0.0
        self._cold: dict[tuple[str, str], float] = {}

    def add(self, part: str, key: str, paid: float, cold: float) -> None:
        """Count what feeding a part of the split took; the same outputs again cost nothing.

        Args:
            part: of the split.
            key: of the outputs.
            paid: spent now.
            cold: as if nothing had been kept.
        """
        self._paid += paid
        self._cold[part, key] = cold

    @property
    def cold(self) -> float:
        """As if nothing had been kept before this trial."""
        return (self.counted or 0.0) + sum(self._cold.values())

    @property
    def marginal(self) -> float:
        """What this trial itself spent."""
        return (self.counted or 0.0) + self._paid

    def state_dict(self) -> dict[str, Any]:
        """All that was counted."""
        return {"counted": self.counted, "paid": self._paid, "cold": dict(self._cold)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Count on from there."""
        self.counted, self._paid, self._cold = state["counted"], state["paid"], dict(state["cold"])


@dataclass(frozen=True)
class Device(ABC):
    """Where a trial computes, and how to wait for it and ask for its peak memory."""

    torch_device: torch.device

    @property
    def name(self) -> str:
        """E.g. "cpu" or "cuda:0"."""
        return str(self.torch_device)

    @abstractmethod
    def describe(self) -> str:
        """The hardware in words."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until all work queued on the device is done."""

    @abstractmethod
    def reset_peak(self) -> None:
        """Let `peaks` speak of what comes after this call only."""

    @abstractmethod
    def peaks(self) -> dict[str, float]:
        """Peak memory in MiB by name of what was measured; what cannot be measured is not in it."""


@final
@dataclass(frozen=True)
class Cpu(Device):
    """The processor; its peak is the resident memory of this process (Linux only)."""

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
            # Memory that earlier trials freed but the allocator kept would count as ours.
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


@final
@dataclass(frozen=True)
class Accelerator(Device):
    """A GPU or the like; `backend` is torch.accelerator, or a stand-in in tests."""

    backend: Any = torch.accelerator

    def describe(self) -> str:
        if self.torch_device.type == "cuda" and torch.cuda.is_available():
            return torch.cuda.get_device_name(self.torch_device)
        return self.torch_device.type

    def synchronize(self) -> None:
        self.backend.synchronize()

    def reset_peak(self) -> None:
        if hasattr(self.backend, "empty_cache"):
            self.backend.empty_cache()
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
                continue  # mps, for instance, keeps no peak
            if value > 0:
                found[metric] = value / MIB
        return found


def keep_freed_memory() -> None:
    """Let this process keep what tensors free for the next ones (glibc only; nothing happens elsewhere).

    By default glibc gives every large block back to the system, which then clears each page anew: an eighth
    of the time of fine-tuning on a CPU. `Cpu.reset_peak` still gives it back between trials.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in ((_M_MMAP_THRESHOLD, 2**30), (_M_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(parameter, value)


def choose_accelerator(number: int) -> None:
    """Let `resolve_device` take one of several accelerators in this process; without any, do nothing.

    Args:
        number: index of the accelerator, counted round and round.
    """
    if count := torch.accelerator.device_count():
        torch.accelerator.set_device_index(number % count)


def resolve_device(name: str) -> Device:
    """The device of that name; "auto" takes an accelerator when there is one.

    Raises:
        UserError: if the name is unknown or this machine has no such device.
    """
    if name not in DEVICES:
        raise UserError(f"unknown device {name!r}; want one of {', '.join(DEVICES)}")
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
