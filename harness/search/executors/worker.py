"""Functions that a worker process runs: initialise once, then run tasks and send their messages.

Heavy imports are inside the functions, because the number of threads must be set before torch is loaded.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.training.trial import TrialTask


def begin_worker(
    parent: int, study_file: Path | None, threads: int | None, path: Sequence[str]
) -> None:
    """Initialise this process: signal handlers, threads, and the names that the study file defines.

    Args:
        parent: process id of the coordinator.
        study_file: imported, so that strategies it defines can be unpickled; None if there is none.
        threads: number of threads, unless the user has set OMP_NUM_THREADS; None leaves it to torch.
        path: value of sys.path.
    """
    if threads is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    sys.path[:] = path
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator handles Ctrl-C
    from harness.core.signals import die_with_parent, request_stop_on_signal

    request_stop_on_signal()
    die_with_parent(parent)
    if study_file is not None:
        from harness.core.study_file import load_study

        load_study(study_file)


def run_and_send(pipe: Connection, task: TrialTask, seat: int) -> None:
    """Run a task; its messages and the answers to its epochs go through the pipe."""
    from harness.training.device import choose_accelerator
    from harness.training.trial import answered

    if task.device != "cpu":
        choose_accelerator(seat)
    with pipe:
        for message in answered(task, pipe.recv):
            pipe.send(message)
