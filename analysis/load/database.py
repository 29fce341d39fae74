"""Read a study from MLflow's SQLite file by SQL, because MLflow's client takes minutes for 100,000 runs.

    python -c "from analysis.load.database import *; \\
               print([e.name for e in Database(Path('mlruns/mlflow.db')).experiments()])"

All reads are in one transaction, so they are consistent while another process writes. Tables are read one
after the other in their stored order, so no more memory is needed than for the result.
"""

from __future__ import annotations

import math
import re
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.core.addresses import read_only_uri
from harness.core.errors import UserError

CHUNK = 50_000
FLOAT = "CASE WHEN is_nan THEN NULL ELSE value END"
"""The value of a metric; MLflow stores NaN as 0 with `is_nan`."""
ITS_OWN = frozenset({"experiments", "runs", "tags", "params", "metrics"})
"""Tables of every MLflow database; MLflow's client would create them in a file that lacks them."""


@dataclass(frozen=True)
class Experiment:
    """An MLflow experiment."""

    id: str
    name: str
    tags: dict[str, str]


class Database:
    """An existing MLflow database.

    Args:
        path: the SQLite file; it is neither created nor changed.

    Raises:
        UserError: if it does not exist, cannot be read or is not an MLflow database.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(
                f"no tracking database at {path}: run a study first, or give --tracking-uri"
            )
        try:
            self._connection = sqlite3.connect(read_only_uri(path), uri=True, isolation_level=None)
            found = self._connection.execute("SELECT name FROM sqlite_master")
            self._names = names = {name for (name,) in found}
        except sqlite3.Error as error:
            raise UserError(f"cannot read the tracking database {path}: {error}") from error
        if not names >= ITS_OWN:
            self.close()
            raise UserError(
                f"{path} holds no MLflow tables; it was not changed: name another with --tracking-uri"
            )
        self._connection.execute("BEGIN")

    def close(self) -> None:
        self._connection.close()

    def known(self) -> bool:
        """Whether it has the schema of the installed MLflow version; otherwise MLflow's client must read it,
        or say how to upgrade it."""
        if "alembic_version" not in self._names:
            return False
        found = {v for (v,) in self._rows("SELECT version_num FROM alembic_version")}
        return found == newest_schemas()

    def experiments(self) -> list[Experiment]:
        """Every experiment that was not deleted, with its tags."""
        found = self._rows(
            "SELECT experiment_id, name FROM experiments WHERE lifecycle_stage = 'active'"
        )
        tags: dict[str, dict[str, str]] = {}
        for owner, key, value in self._rows(
            "SELECT experiment_id, key, value FROM experiment_tags"
        ):
            tags.setdefault(str(owner), {})[key] = value
        return [Experiment(str(i), name, tags.get(str(i), {})) for i, name in found]

    def runs(self, experiment_id: str) -> pd.DataFrame:
        """Every run of the experiment that is a trial, oldest first.

        Returns:
            run_id, start_time (ms), artifact_uri, and `tags.X`, `params.X` (text, None if absent) and
            `metrics.X` (the last value of each, float, NaN if absent).
        """
        rows = list(
            self._rows(
                "SELECT r.run_uuid, r.start_time, r.artifact_uri FROM runs r JOIN tags t "
                "ON t.run_uuid = r.run_uuid AND t.key = 'phase' "
                "WHERE r.experiment_id = ? AND r.lifecycle_stage = 'active' "
                "ORDER BY r.start_time, r.run_uuid",
                int(experiment_id),
            )
        )
        columns: dict[str, Any] = {
            name: [row[i] for row in rows]
            for i, name in enumerate(("run_id", "start_time", "artifact_uri"))
        }
        place = {run: i for i, run in enumerate(columns["run_id"])}
        for table in ("tags", "params"):
            texts = self._columns(f"SELECT run_uuid, key, value FROM {table}", place, None)
            columns |= {f"{table}.{key}": values for key, values in texts.items()}
        command = f"SELECT run_uuid, key, {FLOAT} FROM latest_metrics"
        latest = self._columns(command, place, math.nan)
        return pd.DataFrame(
            columns | {f"metrics.{key}": unclipped(values) for key, values in latest.items()}
        )

    def _columns(
        self, command: str, place: dict[str, int], missing: float | None
    ) -> dict[str, np.ndarray]:
        """One column per key. Equal texts are the same object, because most are shared by all runs."""
        columns: dict[str, np.ndarray] = {}
        texts: dict[str, str] = {}
        kind = object if missing is None else float
        for run, key, value in self._rows(command):
            if (at := place.get(run)) is not None:
                if key not in columns:
                    columns[key] = np.full(len(place), missing, dtype=kind)
                columns[key][at] = texts.setdefault(value, value) if missing is None else value
        return columns

    def history(self, run_ids: Sequence[str], keys: Sequence[str]) -> pd.DataFrame:
        """All values of the metrics `keys`, by run and step.

        Returns:
            run_id, epoch and one column per key, NaN if there is no value. Of two values at one step, the
            earlier.
        """
        place = {run: i for i, run in enumerate(run_ids)}
        columns = {key: self._values(key, place) for key in keys}
        wide = pd.DataFrame(columns)
        names = pd.Series(list(run_ids), dtype="str").to_numpy()
        runs = names[wide.index.get_level_values(0).to_numpy(dtype=int)]
        frame = wide.reset_index(drop=True)
        frame.insert(0, "run_id", runs)
        frame.insert(1, "epoch", wide.index.get_level_values(1).to_numpy(dtype=int))
        return frame

    def _values(self, key: str, place: dict[str, int]) -> pd.Series:
        """Values of one metric by run and step; by the primary key they are read in the order of time."""
        parts = [np.empty((0, 3))]
        command = f"SELECT run_uuid, step, {FLOAT} FROM metrics WHERE key = ? ORDER BY timestamp"
        with closing(self._connection.execute(command, (key,))) as cursor:
            while rows := cursor.fetchmany(CHUNK):
                kept = [(place[run], step, value) for run, step, value in rows if run in place]
                parts.append(np.asarray(kept, dtype=float).reshape(-1, 3))
        table = np.concatenate(parts)
        where = pd.MultiIndex.from_arrays(list(table[:, :2].astype(int).T))
        return pd.Series(unclipped(table[:, 2]), index=where)[~where.duplicated()]

    def _rows(self, command: str, *values: object) -> Iterator[tuple[Any, ...]]:
        with closing(self._connection.execute(command, values)) as cursor:
            yield from cursor


@cache
def newest_schemas() -> frozenset[str]:
    """Schema version of the installed MLflow: its last migration. It is found in the files, because importing
    MLflow takes seconds. Empty if the migrations are not where they are in MLflow 3."""
    package = find_spec("mlflow")
    places = package.submodule_search_locations if package is not None else None
    folder = Path(*(places or ["gone"])[:1], "store", "db_migrations", "versions")
    texts = [path.read_text(encoding="utf-8") for path in folder.glob("*.py")]
    versions, followed = (
        {v for text in texts for v in re.findall(rf'^{name} = "(\w+)"', text, re.MULTILINE)}
        for name in ("revision", "down_revision")
    )
    return frozenset(versions - followed)


def unclipped(values: np.ndarray | float) -> np.ndarray:
    """The values with infinities, which MLflow's databases store as the largest float."""
    largest = np.abs(values) == sys.float_info.max
    given: np.ndarray = np.where(largest, np.copysign(np.inf, values), values)
    return given
