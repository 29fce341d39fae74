"""Which runs of one study are recorded? Its finished ones, with their ids, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow import MlflowClient

from harness.record import Recorded, default_tracking_uri, require_sqlite, sqlite_path
from harness.record import _search as search_runs
from harness.spec import UserError, first_line, without_password


@dataclass(frozen=True)
class Kept:
    """A run and its id."""

    run_id: str
    run: Recorded


def runs_of(study: str, phase: str, tracking_uri: str | None = None) -> list[Kept]:
    """The study's complete runs of that phase, older first.

    Args:
        study: its name, which is the MLflow experiment's.
        phase: "tune" or "repeat"; repeats of a configuration that is no longer the chosen one are left out.
        tracking_uri: the store; None is the database in ./mlruns.

    Raises:
        UserError: if the store cannot be read or knows no such study.
    """
    uri = tracking_uri or default_tracking_uri()
    shown, path = without_password(uri), sqlite_path(uri)
    if path is not None and not path.exists():
        raise UserError(f"there is no tracking store {shown}: run a study first, or --tracking-uri")
    try:
        if path is not None:
            require_sqlite(path)
        client = MlflowClient(tracking_uri=uri)
        experiments = {e.name: e.experiment_id for e in client.search_experiments()}
        if study in experiments:
            condition = f"tags.phase = '{phase}' and tags.outcome = 'complete'"
            found = list(search_runs(client, experiments[study], condition))
    except Exception as error:  # MLflow and SQLAlchemy raise many kinds here
        raise UserError(
            f"cannot read the tracking store {shown}: {without_password(first_line(error))}"
        ) from error
    if study not in experiments:
        known = ", ".join(n for n in experiments if n != "Default") or "none"
        raise UserError(f"no study {study!r} in {shown}; there are: {known}")
    return [
        Kept(r.info.run_id, Recorded(study, r.data.tags, r.data.params, r.data.metrics))
        for r in found
        if r.data.tags.get("superseded") != "true"
    ]
