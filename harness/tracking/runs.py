"""Read runs from MLflow as plain values: the runs of a study, or one run by its id."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from mlflow import MlflowClient
from mlflow.entities import Experiment, Run
from mlflow.exceptions import MlflowException

from harness.core.addresses import remove_stray_folder
from harness.core.errors import UserError, one_line, without_password
from harness.core.stores import default_tracking_uri, require_sqlite, sqlite_path
from harness.tracking.experiment import search


@dataclass(frozen=True)
class Recorded:
    """A recorded run.

    Attributes:
        run_id: MLflow's id of the run.
        experiment: name of its experiment, which is that of the study.
        tags, params: as text.
        metrics: their last values.
        history: metric -> step -> the last value logged for that step; of one run, from `read_run`.
    """

    run_id: str
    experiment: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    history: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.tags["mlflow.runName"]

    @classmethod
    def of(cls, run: Run, experiment: Experiment) -> Recorded:
        """The run as MLflow has it."""
        data = run.data
        return cls(run.info.run_id, experiment.name, data.tags, data.params, data.metrics)


def runs_of(
    study: str, phase: str, tracking_uri: str | None = None, every: bool = False
) -> list[Recorded]:
    """The study's runs of that phase, oldest first.

    Args:
        study: its name, which is the MLflow experiment's.
        phase: "tune" or "repeat".
        tracking_uri: the store; None is the database in ./mlruns.
        every: also those that were not completed, and repeats of a configuration that is not the chosen one.

    Raises:
        UserError: if the store cannot be read or knows no such study.
    """
    uri = tracking_uri or default_tracking_uri()
    condition = f"tags.phase = '{phase}'" + " and tags.outcome = 'complete'" * (not every)
    with _reading(uri) as client:
        experiment = _experiment(client, study, uri)
        return [
            Recorded.of(run, experiment)
            for run in search(client, experiment.experiment_id, condition)
            if every or run.data.tags.get("superseded") != "true"
        ]


def study_tags(study: str, tracking_uri: str | None = None) -> Mapping[str, str]:
    """The tags of a study's experiment, among them "metric" and, of a race, "budget".

    Raises:
        UserError: if the store cannot be read or knows no such study.
    """
    uri = tracking_uri or default_tracking_uri()
    with _reading(uri) as client:
        tags: Mapping[str, str] = _experiment(client, study, uri).tags
        return tags


def _experiment(client: MlflowClient, study: str, uri: str) -> Experiment:
    experiments = {e.name: e for e in client.search_experiments()}
    if study not in experiments:
        known = ", ".join(n for n in experiments if n != "Default") or "none yet"
        raise UserError(f"no study {study!r} in {without_password(uri)}; there are: {known}")
    return experiments[study]


def read_runs(tracking_uri: str, phases: Sequence[str]) -> list[Recorded]:
    """Every finished run of these phases in any experiment, oldest first; empty if there is no store.

    Raises:
        UserError: if the store cannot be read.
    """
    if _is_absent(tracking_uri):
        return []
    with _reading(tracking_uri) as client:
        return [
            Recorded.of(run, experiment)
            for experiment in client.search_experiments()
            for phase in phases
            for run in search(client, experiment.experiment_id, f"tags.phase = '{phase}'")
            if run.info.status == "FINISHED"
        ]


def every_run(study: str, tracking_uri: str) -> list[Run]:
    """Every run of a study, including those deleted in the UI; empty if there is no store or no such study.
    Nothing is written.

    Raises:
        UserError: if the store cannot be read.
    """
    if _is_absent(tracking_uri):
        return []
    with _reading(tracking_uri) as client:
        found = client.get_experiment_by_name(study)
        return [] if found is None else list(search(client, found.experiment_id, deleted=True))


def read_run(tracking_uri: str, run_id: str) -> Recorded:
    """The run of that id, with every epoch of its metrics.

    Raises:
        UserError: if there is no such store or no such run in it.
    """
    with _reading(tracking_uri) as client:
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise UserError(
                f"no run {run_id!r} in {without_password(tracking_uri)}; the MLflow UI shows a run's id on "
                "its page"
            ) from error
        history = {
            name: {m.step: m.value for m in client.get_metric_history(run_id, name)}
            for name in run.data.metrics
        }
        found = Recorded.of(run, client.get_experiment(run.info.experiment_id))
    return replace(found, history=history)


def _is_absent(uri: str) -> bool:
    path = sqlite_path(uri)
    return path is not None and not path.exists()


@contextmanager
def _reading(uri: str) -> Iterator[MlflowClient]:
    """A client of that store; its exceptions in the block become a UserError of one line."""
    if _is_absent(uri):
        raise UserError(
            f"there is no tracking store {without_password(uri)}, so no study is recorded there; name "
            "another with --tracking-uri, or go to the folder in which the study was run"
        )
    with one_line(f"cannot read the tracking store {without_password(uri)}"):
        path = sqlite_path(uri)
        if path is not None:
            require_sqlite(path, "MLflow")
        client = MlflowClient(tracking_uri=uri)
        remove_stray_folder(uri)
        yield client
