"""Read a study from a tracking store that is not a local SQLite file, through MLflow's client.

    python -c "from analysis.load.client import *; \\
               print([e.name for e in Client('http://127.0.0.1:5000').experiments()])"

Apart from `analysis.publish`, which writes, this is the only file of this package that uses MLflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.load.database import Experiment, unclipped
from harness.core.addresses import remove_stray_folder

if TYPE_CHECKING:  # a second or two, and a SQLite file or a table needs none of it
    from mlflow.entities import Run


class Client:
    """Any tracking store, through MLflow's client. It has the methods of `Database`, with one call per page
    or value."""

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        remove_stray_folder(uri)

    def experiments(self) -> list[Experiment]:
        """See Database.experiments."""
        found: list[Experiment] = []
        token = None
        while True:
            page = self._client.search_experiments(page_token=token)
            found += [Experiment(e.experiment_id, e.name, dict(e.tags)) for e in page]
            if not (token := page.token):
                return found

    def runs(self, experiment_id: str) -> pd.DataFrame:
        """See Database.runs."""
        rows: list[dict[str, object]] = []
        token = None
        while True:
            page = self._client.search_runs(
                [experiment_id],
                max_results=1000,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            rows += [_row(run) for run in page if "phase" in run.data.tags]
            if not (token := page.token):
                break
        always = ["run_id", "start_time", "artifact_uri"]
        return pd.DataFrame(rows, columns=None if rows else always)

    def history(self, run_ids: Sequence[str], keys: Sequence[str]) -> pd.DataFrame:
        """See Database.history. One call per run and metric, because the client has no public bulk call."""
        rows = [
            {"run_id": run_id, "epoch": point.step, "metric": key, "value": point.value}
            for run_id in run_ids
            for key in keys
            for point in sorted(
                self._client.get_metric_history(run_id, key), key=lambda p: p.timestamp
            )
        ]
        long = pd.DataFrame(rows, columns=["run_id", "epoch", "metric", "value"])
        long["value"] = unclipped(long["value"].to_numpy(dtype=float))
        long = long.drop_duplicates(["run_id", "epoch", "metric"], keep="first")
        wide = long.pivot(index=["run_id", "epoch"], columns="metric", values="value")
        wide = wide.reindex(columns=list(keys)).rename_axis(columns=None)
        order = pd.Index(run_ids).get_indexer(wide.index.get_level_values(0))
        return wide.iloc[np.argsort(order, kind="stable")].reset_index()

    def download(self, run_id: str, file: str, folder: Path) -> Path:
        """Fetch an artifact of a run into a folder that is made, and returned.

        Raises:
            OSError: if there is none, or the store does not give it.
        """
        from mlflow.exceptions import MlflowException

        folder.mkdir(exist_ok=True)
        try:
            self._client.download_artifacts(run_id, file, str(folder))
        except MlflowException as error:
            raise OSError(str(error)) from error
        return folder


def _row(run: Run) -> dict[str, object]:
    return {
        "run_id": run.info.run_id,
        "start_time": run.info.start_time,
        "artifact_uri": run.info.artifact_uri,
        **{f"tags.{key}": value for key, value in run.data.tags.items()},
        **{f"params.{key}": value for key, value in run.data.params.items()},
        **{f"metrics.{key}": float(unclipped(v)) for key, v in run.data.metrics.items()},
    }
