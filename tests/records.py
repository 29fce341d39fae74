"""Records of trials by hand, and MLflow as it shows them: for tests of what reads either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from harness.core.records import Slot, StudyInfo, TrialRecord
from harness.core.results import Predictions, predictions_parquet
from harness.core.spec import TrialSpec
from harness.core.study import Phase
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


INFO = StudyInfo(
    name="depth",
    question="How deep?",
    command="python -m harness.study --space studies/depth.py",
    factors={"strategy": ["linear probe", "discriminative"]},
    baseline={"strategy": "linear probe"},
    trials=2,
    repeats=1,
    sampler="random",
    seed=0,
    leaks=(),
    study_file="depth.py",
    space_sha256="0" * 64,
)


def attempt(cell: str, phase: Phase, index: int, spec: TrialSpec, **more: Any) -> TrialRecord:
    """A trial, each begun a minute after the one before."""
    trial = TrialRecord(
        key=f"{INFO.name}/{cell}/{phase}#{index}",
        slot=Slot({"strategy": cell}, phase, index),
        number=index,
        attempt=1,
        seed=spec.seed,
        spec=spec.flat(),
        chosen=0 if phase == "repeat" else None,
        provenance={"device": "cpu", "threads": "2", "env.torch": "2.14.0"},
        started=datetime(2026, 1, 2) + timedelta(minutes=spec.seed),
    )
    return trial.but(**more)
