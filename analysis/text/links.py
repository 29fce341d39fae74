"""Where the runs of a study can be looked at."""

from __future__ import annotations

import shlex

from analysis.load import StudyTable
from harness.core.errors import without_password

VIEWER = "http://127.0.0.1:5000"
"""Where `viewer_command` serves."""


def viewer_command(tracking_uri: str, mlflow: str = "mlflow") -> str:
    """What to type, or where to go, to look at the runs in MLflow; never shows a password.

    Args:
        tracking_uri: the store.
        mlflow: how to type MLflow's program.
    """
    uri = without_password(tracking_uri)
    if uri.startswith(("http://", "https://")):
        return f"open {uri} in a browser"
    return f"{mlflow} ui --backend-store-uri {shlex.quote(uri)} --host 127.0.0.1 --workers 1"


def run_link(table: StudyTable) -> str:
    """What a run's id is put behind to get its page in MLflow; "" for a study that is not from there."""
    if not table.info.experiment_id:
        return ""
    uri = without_password(table.tracking_uri)
    server = uri.rstrip("/") if uri.startswith(("http://", "https://")) else VIEWER
    return f"{server}/#/experiments/{table.info.experiment_id}/runs/"
