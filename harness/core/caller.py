"""Protect the caller's Python session: environment variables, warning filters, random state and log levels
stay as they were."""

from __future__ import annotations

import gc
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

MLFLOW = {
    # Give up on an unreachable server after seconds, not minutes, and do not print two lines for every run.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Variables that are set while this project runs, unless the user has set them."""
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
"""Variables that decide how threads wait for each other."""
SPINS = "2000"
"""GOMP_SPINCOUNT, unless the user has set one of WAITING: how often a waiting thread of GNU OpenMP
checks for the others before it sleeps. By default it checks for so long that another busy program slows
training several-fold: `python -m benchmarks.neighbour` measures it."""
LEVELS = {
    "alembic": logging.WARNING,
    "mlflow.store.db.base_sql_model": logging.WARNING,
    # Its errors are raised as exceptions too, which are reported in one line.
    "mlflow.store.db.utils": logging.CRITICAL,
    "optuna": logging.ERROR,
}
"""Logger -> its level while this project runs."""
OPTUNAS_OWN = logging.INFO
"""The log level that Optuna sets when it is imported."""


def set_variables() -> None:
    """Set MLFLOW and SPINS for the whole process; for commands and workers."""
    for name, value in MLFLOW.items():
        os.environ.setdefault(name, value)
    # OpenMP looks once, when torch is loaded.
    if "torch" not in sys.modules and not any(name in os.environ for name in WAITING):
        os.environ["GOMP_SPINCOUNT"] = SPINS


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Pause Python's garbage collection inside the block: while libraries are imported or many trials are
    read, it takes a sixth to a third of the time and finds nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Import and configure libraries for this project inside the block, and restore the caller's settings
    after it. Also a decorator, for public functions."""
    environment, state = dict(os.environ), random.getstate()
    levels = {name: logging.getLogger(name).level for name in LEVELS}
    if "optuna" not in sys.modules:
        levels["optuna"] = OPTUNAS_OWN
    level_of_all, handlers = logging.root.level, list(logging.root.handlers)  # for torch.export
    threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # as in harness.data.images
        set_variables()
        for name, level in LEVELS.items():
            logging.getLogger(name).setLevel(level)
        try:
            yield
        finally:
            random.setstate(state)
            logging.root.setLevel(level_of_all)
            logging.root.handlers[:] = handlers
            for name in os.environ.keys() - environment.keys():
                del os.environ[name]
            for name, value in environment.items():
                if os.environ.get(name) != value:
                    os.environ[name] = value
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            if threads is not None and sys.modules["torch"].get_num_threads() != threads:
                sys.modules["torch"].set_num_threads(threads)
