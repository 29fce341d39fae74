"""Records of trials by hand, and MLflow as it shows them: for tests of what reads either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.core.records import StudyInfo, TrialRecord
from harness.core.results import Predictions, predictions_parquet
from harness.tracking.projection import Projection


@dataclass(frozen=True)
class Kept:
    """A record that consists of these trials, and of the tables of predictions in a folder."""

    known: Sequence[TrialRecord]
    folder: Path = Path()

    def trials(self, info: StudyInfo) -> list[TrialRecord]:
        return list(self.known)

    def predictions(self, trial: TrialRecord) -> Path:
        return self.folder / trial.predictions

    def predict(self, name: str, predictions: Predictions) -> None:
        (self.folder / name).write_bytes(predictions_parquet(predictions))


def project(uri: str, info: StudyInfo, kept: Kept) -> None:
    """Write them to MLflow; what is running is shown as running."""
    seconds = iter(range(0, 10**9, 10))
    projection = Projection(uri, info, kept, clock=lambda: float(next(seconds)))
    projection.open()
    for trial in kept.known:
        if trial.outcome:
            projection.show(trial)
        else:
            projection.show_live(trial)
            projection.show_live(trial)
    assert not projection.behind
