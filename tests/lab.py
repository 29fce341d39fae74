"""A study in small: training replaced by a known truth, accuracy as a function of the spec.

Optuna is real, and MLflow where a test looks at it; only what makes a trial out of a spec is a stand-in.
`Lab` keeps its record in memory; `tests.toy.Place` has both stores in files.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import BaseTrial, FrozenTrial

from harness import strategies
from harness.core.records import StudyInfo, TrialRecord
from harness.core.results import EpochResult, Predictions, TrialResult
from harness.core.spec import TrialSpec
from harness.core.study import Arms, Study
from harness.search.cell import CellSearch
from harness.search.coordinator import Coordinator, RunContext, SlotDone
from harness.search.executors.inline import Inline
from harness.search.record import Record
from harness.tracking.projection import Projection
from harness.tracking.study_runs import Difference, StudyRuns
from harness.training.trial import run_trial

ARMS: Arms = {
    "probe": lambda t: strategies.LinearProbe(),
    "full": lambda t: strategies.FullFineTune(),
}


def space(trial: BaseTrial, strategy: str) -> TrialSpec:
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    return TrialSpec(
        target="digits",
        backbone="test_resnet",
        strategy=ARMS[strategy](trial),
        source="scratch",
        lr=lr,
        epochs=2,
    )


def make_study(**changes: Any) -> Study:
    """Two cells, each with three trials and two repeats."""
    fields: dict[str, Any] = {
        "compare": {"strategy": ARMS}, "space": space, "trials": 3, "repeats": 2, "name": "toy",
    }  # fmt: skip
    return Study(**{**fields, **changes})


def info_of(study: Study, **changes: Any) -> StudyInfo:
    """As the command would record it."""
    fields: dict[str, Any] = {
        "name": study.name, "question": "Does it?", "command": "run it", "baseline": {}, "leaks": (),
        "factors": {k: list(v) for k, v in study.compare.items()}, "trials": study.trials,
        "repeats": study.repeats, "sampler": study.sampler, "seed": study.seed, "study_file": "toy.py",
        "space_sha256": "ab12", "folds": study.fold_count, "metric": study.metric,
    }  # fmt: skip
    return StudyInfo(**{**fields, **changes})


def truth(spec: TrialSpec) -> tuple[float, float]:
    """Validation loss and accuracy of a spec: the nearer the rate to 0.01, the better."""
    distance = abs(np.log10(spec.lr) + 2)
    return float(distance), float(1 / (1 + distance))


class World:
    """Stands in for training: what each spec gives, and what was asked for."""

    def __init__(self) -> None:
        self.specs: list[TrialSpec] = []
        self.tested: list[TrialSpec] = []
        self.truth: Callable[[TrialSpec], tuple[float, float]] = truth
        self.further: Callable[[TrialSpec], dict[str, float]] = lambda spec: {}
        self.disturb: Callable[[TrialSpec, int], object] = lambda spec, epoch: None

    @property
    def tuned(self) -> list[TrialSpec]:
        """Specs that were not tested."""
        return [s for s in self.specs if s not in self.tested]

    def start(self, spec: TrialSpec, *_: object) -> Any:
        self.specs.append(spec)
        return FakeTraining(self, spec)

    def fail_on(self, numbers: set[int], error: BaseException) -> None:
        """Raise in the second epoch of these trials, counted from 1."""

        def disturb(spec: TrialSpec, epoch: int) -> None:
            if epoch == 1 and len(self.specs) in numbers:
                raise error

        self.disturb = disturb


class FakeTraining:
    def __init__(self, world: World, spec: TrialSpec) -> None:
        self._world, self._spec = world, spec

    def __iter__(self) -> Iterator[EpochResult]:
        for epoch in range(self._spec.epochs):
            self._world.disturb(self._spec, epoch)
            seconds = 0.5 * (epoch + 1)
            scores, further = self._world.truth(self._spec), self._world.further(self._spec)
            yield EpochResult(epoch, 1.0, *scores, seconds, seconds, further)

    def checkpoint(self) -> None:
        return None

    def finish(self, test: bool) -> TrialResult:
        if not test:
            return TrialResult("complete", {"train_seconds": 1.0})
        self._world.tested.append(self._spec)
        one = np.array([1])
        found = Predictions(one, one, one, np.array([0.5]), np.array([0.5]))
        metrics = {"train_seconds": 1.0, "test_accuracy": 0.5}
        metrics |= {f"test_{name}": v for name, v in self._world.further(self._spec).items()}
        return TrialResult("complete", metrics, "", found)


class Unshown(Projection):
    """Stands in for MLflow where only the record matters."""

    def __init__(self) -> None:
        self.behind = False

    def open(self) -> None: ...

    def show_live(self, trial: TrialRecord) -> None: ...

    def show(self, trial: TrialRecord) -> None: ...

    def settle(self) -> None: ...


class Lab:
    """The record of a study, as it outlives a process, and MLflow beside it if there is a URI."""

    def __init__(self, world: World, folder: Path, uri: str = "") -> None:
        self.world, self.folder, self.uri = world, folder, uri
        self.clock: Callable[[], float] = time.monotonic
        self.kept: optuna.storages.BaseStorage = optuna.storages.InMemoryStorage()

    def storage(self) -> optuna.storages.BaseStorage:
        return self.kept

    def record(self) -> Record:
        return Record(self.storage(), self.folder)

    def info(self, study: Study) -> StudyInfo:
        return info_of(study)

    def differences(self) -> list[Difference]:
        """Where MLflow does not show what the record says."""
        record = self.record()
        return StudyRuns(self.uri, record.info("toy"), record).sync(check=True)

    def coordinator(self, study: Study, **options: Any) -> Coordinator:
        """Ready to run the study, as in the command."""
        record = self.record()
        info = self.info(study)
        projection = Projection(self.uri, info, record, self.clock) if self.uri else Unshown()
        projection.open()
        context = RunContext(record, projection, **options)
        executor = Inline(partial(run_trial, begin=self.world.start))
        return Coordinator(study, info, context, executor)

    def events(self, study: Study, **options: Any) -> Iterator[SlotDone]:
        yield from self.coordinator(study, **options).run()

    def run(self, study: Study, **options: Any) -> list[SlotDone]:
        return list(self.events(study, **options))

    def search(self, study: Study, cell: int = 0, **options: Any) -> CellSearch:
        return CellSearch(self.record(), study, study.cells()[cell], **options)

    def trials(self, **wanted: object) -> list[TrialRecord]:
        """Attempts in the record whose cell, phase, index or other fields are these."""
        record = self.record()

        def about(trial: TrialRecord) -> dict[str, object]:
            cell, phase, index = trial.slot.key
            return {**vars(trial), "cell": cell, "phase": phase, "index": index}

        found = record.trials(record.info("toy"))
        return [t for t in found if wanted.items() <= about(t).items()]

    def outcomes(self) -> Counter[str]:
        return Counter(t.outcome for t in self.trials())

    def complete_slots(self) -> Counter[tuple[str, str, int]]:
        return Counter(t.slot.key for t in self.trials(outcome="complete"))

    # --- without the harness's own view of either store ------------------------------------------------

    def optuna_trials(self, name: str = "") -> list[FrozenTrial]:
        """The trials of one of Optuna's studies, or of all."""
        storage = self.storage()
        names = [name] if name else optuna.get_all_study_names(storage)
        return [t for n in names for t in optuna.load_study(study_name=n, storage=storage).trials]

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.uri)

    def every_run(self) -> list[Run]:
        experiment = self.client.get_experiment_by_name("toy")
        assert experiment is not None
        return list(self.client.search_runs([experiment.experiment_id]))

    def runs(self, **tags: object) -> list[Run]:
        """Runs of trials that have these tags."""
        wanted = {k: str(v) for k, v in tags.items()}.items()
        every = [r for r in self.every_run() if "phase" in r.data.tags]  # not the study's own run
        return [r for r in every if wanted <= r.data.tags.items()]

    def run_outcomes(self) -> Counter[str]:
        return Counter(r.data.tags.get("outcome", "none") for r in self.runs())
