"""A clock that can be stopped by name, and peaks that are missing when they were not measured."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from harness.training.device import Accelerator, Clock, Cpu, choose_accelerator, resolve_device
from tests.processes import output_of
from tests.refusals import refused


class Time:
    """Stands in for time.perf_counter; `work` makes it pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def work(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def fake_time(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


def nothing() -> None:
    """What a processor has to wait for."""


def test_clock_counts_from_its_creation(fake_time: Time) -> None:
    clock = Clock(nothing)
    fake_time.work(3)
    assert clock.seconds == 3
    fake_time.work(4)
    assert clock.seconds == 7


def test_paused_time_does_not_count(fake_time: Time) -> None:
    clock = Clock(nothing)
    fake_time.work(1)
    with clock.pause():
        fake_time.work(10)
        assert clock.seconds == 1
        fake_time.work(10)
    fake_time.work(2)
    with clock.pause():
        fake_time.work(50)
    assert clock.seconds == 3


def test_clock_runs_on_after_an_exception_in_a_pause(fake_time: Time) -> None:
    clock = Clock(nothing)

    def fail() -> None:
        with clock.pause():
            fake_time.work(9)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    fake_time.work(2)
    assert clock.seconds == 2


def test_pauses_do_not_nest(fake_time: Time) -> None:
    clock = Clock(nothing)
    with clock.pause(), pytest.raises(RuntimeError, match="already paused"), clock.pause():
        pass


def test_queued_work_is_charged_to_the_side_that_queued_it(fake_time: Time) -> None:
    """An accelerator works on after the call returned; the clock waits for it at each boundary."""
    queue: list[float] = []

    def synchronize() -> None:
        fake_time.work(sum(queue))
        queue.clear()

    clock = Clock(synchronize)
    queue.append(5)  # training
    with clock.pause():
        queue.append(70)  # evaluation
    queue.append(2)  # training
    assert clock.seconds == 7


# --- processor -------------------------------------------------------------------------------------

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def can_reset() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


@ON_LINUX
def test_peak_sees_a_large_array_and_forgets_it_after_a_reset() -> None:
    if not can_reset():
        pytest.skip("this kernel does not let a process reset its peak")
    device = Cpu()
    device.reset_peak()
    before = device.peaks()["peak_process_rss_mib"]
    array = np.ones(200 * 2**20, np.uint8)
    del array
    with_array = device.peaks()["peak_process_rss_mib"]
    device.reset_peak()
    after = device.peaks()["peak_process_rss_mib"]
    # Pages of other origin come and go in the same process: 10 MiB either way.
    assert with_array - before == pytest.approx(200, abs=10)
    assert after == pytest.approx(before, abs=10)


@pytest.mark.parametrize(("line", "peak"), [("VmHWM:\t  3072 kB\n", 3.0), ("", None)])
def test_peak_is_read_in_mebibytes_or_missing(
    line: str, peak: float | None, tmp_path: Path
) -> None:
    (tmp_path / "status").write_text(f"Name:\tpython\n{line}VmRSS:\t 1024 kB\n")
    for folder, wanted in ((tmp_path, peak), (tmp_path / "absent", None)):
        device = Cpu(proc=folder)
        device.reset_peak()
        assert device.peaks() == ({} if wanted is None else {"peak_process_rss_mib": wanted})
    assert (tmp_path / "clear_refs").read_text() == "5"


def test_processor_has_a_name_and_a_description() -> None:
    assert Cpu().name == "cpu"
    assert Cpu().describe()


# --- accelerator -----------------------------------------------------------------------------------


def raises(error: Exception) -> Callable[[], int]:
    def call() -> int:
        raise error

    return call


def gpu(**functions: object) -> Accelerator:
    return Accelerator(torch.device("cuda", 1), backend=SimpleNamespace(**functions))


def test_accelerator_peaks_are_in_mebibytes() -> None:
    device = gpu(max_memory_allocated=lambda: 3 * 2**20, max_memory_reserved=lambda: 2**22)
    assert device.peaks() == {
        "peak_accelerator_allocated_mib": 3.0,
        "peak_accelerator_reserved_mib": 4.0,
    }
    assert device.name == "cuda:1"


@pytest.mark.parametrize(
    "functions",
    [
        {},
        {"max_memory_allocated": lambda: 0, "max_memory_reserved": lambda: 0},
        {"max_memory_allocated": raises(RuntimeError("not on mps"))},
        {"max_memory_reserved": raises(NotImplementedError())},
    ],
)
def test_accelerator_that_keeps_no_peak_reports_none_and_never_zero(
    functions: dict[str, object],
) -> None:
    device = gpu(**functions)
    device.reset_peak()
    assert device.peaks() == {}


def test_one_peak_is_reported_when_the_other_is_missing() -> None:
    assert gpu(max_memory_reserved=lambda: 2**20).peaks() == {"peak_accelerator_reserved_mib": 1.0}


def test_accelerator_is_waited_for_and_its_peak_reset() -> None:
    calls: list[str] = []
    names = ("synchronize", "empty_cache", "reset_peak_memory_stats")
    device = gpu(**{n: lambda n=n: calls.append(n) for n in names})
    device.synchronize()
    device.reset_peak()
    assert calls == ["synchronize", "empty_cache", "reset_peak_memory_stats"]


# --- choice of device ------------------------------------------------------------------------------


def pretend(monkeypatch: pytest.MonkeyPatch, kind: str | None) -> None:
    found = None if kind is None else torch.device(kind)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: found)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)


@pytest.mark.parametrize("name", ["gpu", "", "CPU", "cuda:0"])
def test_unknown_device_lists_the_choices(name: str) -> None:
    with refused(r"unknown device .*auto, cpu, cuda, mps"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("name", "there"), [("cuda", None), ("mps", None), ("cuda", "mps"), ("mps", "cuda")]
)
def test_device_that_is_not_there_is_refused_with_what_is(
    name: str, there: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, there)
    with refused(f"device {name} is not available: .* has cpu") as caught:
        resolve_device(name)
    assert there is None or f"and {there}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "there", "wanted"),
    [
        ("auto", None, "cpu"),
        ("cpu", None, "cpu"),
        ("cpu", "cuda", "cpu"),
        ("auto", "cuda", "cuda:0"),
        ("cuda", "cuda", "cuda:0"),
        ("auto", "mps", "mps:0"),
    ],
)
def test_device_is_the_accelerator_when_asked_for_or_auto(
    name: str, there: str | None, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, there)
    assert resolve_device(name).name == wanted


@pytest.mark.parametrize(
    ("number", "taken"), [(0, "cuda:0"), (1, "cuda:1"), (2, "cuda:0"), (5, "cuda:1")]
)
def test_several_accelerators_are_dealt_out_in_turn(
    number: int, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, "cuda")
    current = [0]
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda i: current.__setitem__(0, i))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: current[0])
    choose_accelerator(number)
    assert resolve_device("cuda").name == taken


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries have no mallopt")
def test_what_tensors_free_is_kept_for_the_next_ones_until_a_reset() -> None:
    program = """
import resource, torch
from harness.training.device import resolve_device
device = resolve_device("cpu")
def faults(mebibytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(mebibytes, 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first = faults(80)
# Each fits into what the one before left, whatever small block has come to lie behind that.
again = min(faults(mebibytes) for mebibytes in range(79, 70, -1))
device.reset_peak()
print(first, again, faults(70))
"""
    first, again, after_reset = map(int, output_of("-c", program).split())
    assert again < first / 10
    assert after_reset > first / 2
