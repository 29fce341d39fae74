"""Shared by the tests: one thread, a tiny trial, and empty databases that are copied, not made anew."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from alembic.config import Config
from alembic.script import ScriptDirectory

from benchmarks.postgres import Server
from harness.core.spec import TrialSpec
from harness.core.stores import sqlite_path
from harness.core.strategies import FullFineTune
from harness.data import clear_caches
from tests.lab import Lab, World

if TYPE_CHECKING:
    from tests.bundles import Make, Shards

pytest.register_assert_rewrite("tests.bundles", "tests.toy", "tests.trials")
NUMBERS = count()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums in one order only, and no more threads than the machine has cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def imported_modules_are_no_garbage() -> None:
    """A look for garbage need not pass over a million objects of libraries, half a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands keep nothing in the cache of whoever runs the tests. The folder is made when it is needed."""
    cache = tmp_path_factory.getbasetemp() / "caches" / str(next(NUMBERS))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(scope="session")
def tables() -> Path:
    """The folder of published tables: $HARNESS_TABLES, or ../shared/tables beside the repository."""
    beside = Path(__file__).parents[1].parent / "shared" / "tables"
    folder = Path(os.environ.get("HARNESS_TABLES", beside))
    if not (folder / "README.md").is_file():
        pytest.skip(f"no published tables in {folder}: set HARNESS_TABLES")
    return folder


@pytest.fixture(autouse=True)
def other_programs_are_not_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether trials wait for a processor depends on what else runs beside the tests."""
    monkeypatch.setattr("harness.search.progress.BUSY", 2.0)
    monkeypatch.setattr("harness.search.costs.BUSY", 2.0)


@pytest.fixture(scope="session", autouse=True)
def inference_is_timed_for_a_moment() -> Iterator[None]:
    """Every trial that is tested times its network, for a second or two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.training.inference_cost.SECONDS", 0.02)
        yield


@pytest.fixture
def forget_targets() -> Iterator[None]:
    """Targets are cached by name; those of the test must not outlive it."""
    yield
    clear_caches()


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., TrialSpec]:
    """A trial of about a tenth of a second, with any field changed."""

    def make(**changes: Any) -> TrialSpec:
        fields: dict[str, Any] = {
            "target": "digits",
            "backbone": "test_resnet",
            "strategy": FullFineTune(),
            "source": "scratch",
            "shots": 5,
            "val_shots": 4,
            "test_shots": 6,
            "resolution": 32,
            "epochs": 2,
            "batch_size": 16,
        }
        return TrialSpec(**{**fields, **changes})

    return make


@pytest.fixture(scope="session", autouse=True)
def migrations_run_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every new MLflow database is a copy of the first one, because its migrations take seconds."""
    from harness.tracking import experiment

    first, make_tables = tmp_path_factory.mktemp("first") / "mlflow.db", experiment._make_tables

    def copy(url: str) -> None:
        if not first.exists():
            make_tables(f"sqlite:///{first}")
        shutil.copy(first, str(sqlite_path(url)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "_make_tables", copy)
        yield


@pytest.fixture(scope="session", autouse=True)
def scripts_of_migrations_are_read_once() -> Iterator[None]:
    """Optuna and MLflow import all of theirs whenever a database is opened: a tenth of a second."""
    read, known = ScriptDirectory.from_config, dict[str | None, ScriptDirectory]()

    def from_config(config: Config) -> ScriptDirectory:
        place = config.get_main_option("script_location")
        if place not in known:
            known[place] = read(config)
        return known[place]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptDirectory, "from_config", from_config)
        yield


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs."""
    from harness.tracking.experiment import open_store

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    open_store(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def optuna_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An Optuna database without studies."""
    from harness.search.storage import open_storage

    path = tmp_path_factory.mktemp("template") / "optuna.db"
    open_storage(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def with_stores(mlflow_template: Path, optuna_template: Path) -> Callable[[Path], Path]:
    """Makes a folder, if it is not there, with both databases in it; returns the folder."""

    def make(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for template in (mlflow_template, optuna_template):
            shutil.copy(template, folder)
        return folder

    return make


@pytest.fixture
def tracking_uri(mlflow_template: Path, tmp_path: Path) -> str:
    """A fresh, empty MLflow store."""
    path = tmp_path / "mlruns" / "mlflow.db"
    path.parent.mkdir(exist_ok=True)
    shutil.copy(mlflow_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Stands in for training."""
    # After a trial that failed; a third of a second each, and a stand-in leaves nothing to collect.
    monkeypatch.setattr("harness.training.trial.gc.collect", lambda: 0)
    return World()


@pytest.fixture
def lab(world: World, tmp_path: Path) -> Lab:
    """A study's record."""
    return Lab(world, tmp_path)


@pytest.fixture
def shown(world: World, tmp_path: Path, tracking_uri: str) -> Lab:
    """A study's record, and MLflow beside it."""
    return Lab(world, tmp_path, tracking_uri)


@pytest.fixture
def machine(with_stores: Callable[[Path], Path], tmp_path: Path) -> Make:
    """Makes a machine with stores of its own."""
    from tests.bundles import Machine

    return lambda folder, **info: Machine(with_stores(tmp_path / folder), **info)


@pytest.fixture(scope="session")
def shards(with_stores: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Shards:
    from tests.bundles import pack_shards

    return pack_shards(with_stores, tmp_path_factory.mktemp("machines"))


@pytest.fixture
def into(with_stores: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A folder whose databases have nothing in them."""
    return with_stores(tmp_path / "into")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of a report's time: the files of figures are empty where a test reads words only."""
    from matplotlib.figure import Figure

    def touch(_: Figure, where: Path | BytesIO, **__: Any) -> None:
        if isinstance(where, Path):
            where.touch()

    monkeypatch.setattr(Figure, "savefig", touch)


@pytest.fixture
def one_cell_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proposed study has one cell, so that its costs are soon known."""
    monkeypatch.setattr("harness.dataset_report.proposal.AT_HAND", ("tf_efficientnet_lite0",))
    by_shots = ((10**9, ("linear probe",)),)
    monkeypatch.setattr("harness.dataset_report.proposal.BY_SHOTS", by_shots)


@pytest.fixture
def for_nobody() -> Iterator[tuple[Path, Callable[[], None]]]:
    """A folder, and what makes the process one whose files' permissions count: root is above them."""

    def become() -> None:
        if os.geteuid() == 0:
            os.seteuid(65534)

    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name), become
        if os.geteuid() == 65534:
            os.seteuid(0)
        for folder in Path(name).rglob("*/"):
            folder.chmod(0o755)


@pytest.fixture
def server() -> Iterator[Server]:
    """A PostgreSQL of its own; skipped where there is none."""
    try:
        made = Server()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    try:
        yield made
    finally:
        made.remove()
