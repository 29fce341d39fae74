"""Publish the report as an artifact of the study's own run in MLflow."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mlflow import MlflowClient

from harness.core.addresses import adopt_artifacts, remove_stray_folder, sqlite_path
from harness.core.caller import undisturbed
from harness.core.errors import first_line, without_password

FOLDER = "report"


@undisturbed()
def publish(study: str, tracking_uri: str, files: Iterable[Path]) -> str:
    """Log files as artifacts of the study's parent run, replacing earlier ones.

    Args:
        study: name of the study and of its MLflow experiment.
        tracking_uri: address of the store from which it was read.
        files: the files, for the artifact folder "report".

    Returns:
        Id of the parent run; "" if nothing could be logged. The reason is then printed, and the report is not
        affected.
    """
    try:
        if (database := sqlite_path(tracking_uri)) is not None:
            adopt_artifacts(database)
        client = MlflowClient(tracking_uri=tracking_uri)
        remove_stray_folder(tracking_uri)
        experiment = client.get_experiment_by_name(study)
        found = experiment and client.search_runs(
            [experiment.experiment_id], "tags.kind = 'study'", max_results=1
        )
        if not found:
            return ""  # recorded before studies had a run of their own
        parent: str = found[0].info.run_id
        for file in files:
            client.log_artifact(parent, str(file), FOLDER)
        return parent
    except Exception as error:  # MLflow, SQLAlchemy, OSError and requests raise many kinds here
        print(
            f"warning: the report could not be logged to {without_password(tracking_uri)}: "
            f"{without_password(first_line(error))}"
        )
        return ""
