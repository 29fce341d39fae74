"""Share of time that this process waited for a processor, from the statistics of Linux's scheduler."""

from __future__ import annotations

from pathlib import Path

TASKS = Path("/proc/self/task")


class Waiting:
    """Measures from its creation on.

    Args:
        tasks: folder with one folder per thread, as Linux has it; elsewhere nothing is measured.
    """

    def __init__(self, tasks: Path = TASKS) -> None:
        self._tasks = tasks
        self._ran, self._waited = self._read()

    def share(self) -> float | None:
        """Time that threads were ready and had no processor, as a share of the time that they were ready or
        ran, summed over all threads: near 0 on a quiet machine. None if it is not known."""
        ran, waited = self._read()
        ran, waited = ran - self._ran, waited - self._waited
        return waited / (ran + waited) if ran > 0 and waited >= 0 else None

    def _read(self) -> tuple[int, int]:
        """Nanoseconds on a processor and waiting for one (docs.kernel.org/scheduler/sched-stats.html)."""
        ran = waited = 0
        for thread in self._tasks.glob("*/schedstat"):
            try:
                first, second, _ = thread.read_text().split()
            except (OSError, ValueError):  # the thread has ended, or statistics are off
                continue
            ran, waited = ran + int(first), waited + int(second)
        return ran, waited
