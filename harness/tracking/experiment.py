"""Open or create an MLflow experiment, search its runs, and write runs.

mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db --host 127.0.0.1 --workers 1
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag, ViewType

from harness.core.addresses import adopt_artifacts, artifact_location, remove_stray_folder
from harness.core.errors import UserError, one_line, without_password
from harness.core.stores import create_sqlite, require_sqlite, sqlite_path, warn_of_network

METRICS_PER_CALL, PARAMS_PER_CALL = 1000, 100
"""MLflow's own limits (mlflow/utils/validation.py); 100 is also the limit for tags."""
TAG_LENGTH = 5000


class Experiment:
    """An experiment in an MLflow store; a SQLite file is created if absent.

    Args:
        tracking_uri: address of the store.
        name: name of the experiment, which is created if absent.
        tags: tags of the experiment; those that differ are written.

    Raises:
        UserError: if the store cannot be used, or the experiment was deleted.
    """

    def __init__(self, tracking_uri: str, name: str, tags: Mapping[str, str]) -> None:
        self.name = name
        with _opening(tracking_uri):
            open_store(tracking_uri)
            self.client = MlflowClient(tracking_uri=tracking_uri)
            remove_stray_folder(tracking_uri)
            self.id = self._open(sqlite_path(tracking_uri))
            known = self.client.get_experiment(self.id).tags
            wrong = {key: value for key, value in tags.items() if known.get(key) != value}
            # If none differs, one is written again, so that missing write permission is noticed at the start.
            for key, value in wrong.items() or list(tags.items())[:1]:
                self.set_tag(key, value)

    def _open(self, path: Path | None) -> str:
        found = self.client.get_experiment_by_name(self.name)
        if found is not None and found.lifecycle_stage == "deleted":
            raise UserError(
                f"experiment {self.name!r} was deleted in MLflow: restore it "
                f"(mlflow experiments restore -x {found.experiment_id}) or rename the study"
            )
        if found is not None:
            known: str = found.experiment_id
            return known
        location = None if path is None else artifact_location(path, self.name)
        made: str = self.client.create_experiment(self.name, artifact_location=location)
        return made

    def tag(self, name: str) -> str:
        """The value of one of the experiment's own tags; "" if it has none of that name."""
        value: str = self.client.get_experiment(self.id).tags.get(name, "")
        return value

    def set_tag(self, name: str, value: str) -> None:
        """Write one of the experiment's own tags."""
        self.client.set_experiment_tag(self.id, name, value)

    def search(self, condition: str = "", deleted: bool = False) -> Iterator[Run]:
        """Every run that matches MLflow's filter, oldest first; runs deleted in the UI only if asked for."""
        yield from search(self.client, self.id, condition, deleted)

    def create(self, name: str, tags: Mapping[str, object], started: int | None = None) -> str:
        """Open a run; returns its id."""
        run = self.client.create_run(
            self.id, start_time=started, tags=storable(tags), run_name=name
        )
        run_id: str = run.info.run_id
        return run_id

    def write(
        self,
        run_id: str,
        metrics: list[Metric],
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, object] | None = None,
    ) -> None:
        """Metrics, parameters and tags in as few calls as MLflow allows; the tags come last."""
        written = [Param(k, v) for k, v in storable(params or {}).items()]
        while len(metrics) > METRICS_PER_CALL or len(written) > PARAMS_PER_CALL:
            some, metrics = metrics[:METRICS_PER_CALL], metrics[METRICS_PER_CALL:]
            others, written = written[:PARAMS_PER_CALL], written[PARAMS_PER_CALL:]
            self.client.log_batch(run_id, some, others)
        marks = [RunTag(k, v) for k, v in storable(tags or {}).items()]
        self.client.log_batch(run_id, metrics, written, marks)

    def keep(
        self,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, object],
        metrics: Mapping[str, float],
        artifacts: Mapping[str, Path] | None = None,
    ) -> None:
        """Write a complete run that is not a trial: a pretraining, or the measures of one pair.

        Args:
            name: name of the run.
            params, tags, metrics: its contents; metrics that are NaN or infinite are left out.
            artifacts: name of each artifact -> path of its file.
        """
        with self.run(name, tags, metrics, params) as run_id:
            for kept_as, path in (artifacts or {}).items():
                self.attach(run_id, kept_as, path)

    @contextmanager
    def run(
        self,
        name: str,
        tags: Mapping[str, object],
        metrics: Mapping[str, float],
        params: Mapping[str, object] | None = None,
    ) -> Iterator[str]:
        """Open a run with these contents for the block, which gets its id, and end it."""
        run_id = self.create(name, tags)
        status = "FAILED"
        try:
            now = int(time.time() * 1000)
            points = [Metric(k, v, now, 0) for k, v in finite(metrics).items()]
            self.write(run_id, points, params)
            yield run_id
            status = "FINISHED"
        finally:  # also after Ctrl-C or with a full disk, because nothing else would end the run
            self.client.set_terminated(run_id, status=status)

    def attach(self, run_id: str, name: str, path: Path) -> None:
        """Copy a file into the artifacts of a run, under that name."""
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(path, Path(folder, name))
            self.client.log_artifact(run_id, str(Path(folder, name)))

    def kept(self, phase: str) -> list[dict[str, str]]:
        """Tags of the finished runs of that phase."""
        condition = f"tags.phase = '{phase}' and attributes.status = 'FINISHED'"
        return [dict(run.data.tags) for run in self.search(condition)]


def search(
    client: MlflowClient, experiment: str, condition: str = "", deleted: bool = False
) -> Iterator[Run]:
    """Every run of an experiment that matches MLflow's filter, oldest first."""
    token = None
    while True:
        page = client.search_runs(
            [experiment],
            condition,
            run_view_type=ViewType.ALL if deleted else ViewType.ACTIVE_ONLY,
            max_results=1000,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


def check_tracking_uri(tracking_uri: str) -> None:
    """Refuse an invalid tracking URI before any slow step. No file is created.

    Raises:
        UserError: as Experiment does.
    """
    with _opening(tracking_uri):
        path = sqlite_path(tracking_uri)
        if path is None:
            MlflowClient(tracking_uri=tracking_uri)
        elif path.exists():
            require_sqlite(path, "MLflow", or_empty=True)


def _opening(uri: str) -> AbstractContextManager[None]:
    return one_line(f"cannot open the tracking store {without_password(uri)}")


def open_store(tracking_uri: str) -> None:
    """Create a SQLite store if there is none, and refuse a file of another kind.

    Raises:
        UserError, OSError, sqlite3.Error: if it cannot be used.
    """
    path = sqlite_path(tracking_uri)
    if path is not None:
        create_sqlite(path, _make_tables)
        require_sqlite(path, "MLflow", or_empty=True)
        adopt_artifacts(path)
        warn_of_network(path, "--tracking-uri http://HOST:5000 of an MLflow server")


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """Drop values that MLflow would store as the largest number or as something that cannot be compared."""
    return {k: float(v) for k, v in values.items() if math.isfinite(v)}


def storable(values: Mapping[str, object]) -> dict[str, str]:
    """As text, with "?" for characters that no database accepts: NUL, and bytes that are not UTF-8."""
    return {
        k: str(v).replace("\0", "?").encode("utf-8", "replace").decode()[:TAG_LENGTH]
        for k, v in values.items()
    }


def _make_tables(uri: str) -> None:
    MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    remove_stray_folder(uri)
