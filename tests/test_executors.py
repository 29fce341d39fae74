"""Where trials run makes no difference: the same trials, the same accuracies, by workers without a store."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.core.records import TrialRecord
from harness.data import clear_caches
from harness.search.record import Record
from harness.search.storage import read_storage
from harness.study import main

STUDY = '''"""Does a toy learn anywhere?"""
import json, os, sys
from dataclasses import dataclass
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import strategies
from harness.core.spec import TrialSpec
from harness.core.study import Study

@dataclass(frozen=True)
class Mine(strategies.Strategy):
    """Trains everything, and says what the process that asks has loaded."""
    share: float = 1.0

    def lr_scales(self, num_groups, epoch):
        loaded = sorted({"torch", "optuna", "mlflow", "sqlalchemy"} & set(sys.modules))
        seen = Path("seen")
        seen.mkdir(exist_ok=True)
        (seen / str(os.getpid())).write_text(json.dumps(loaded))
        return (self.share,) * num_groups

ARMS = {"probe": strategies.LinearProbe(), "mine": Mine(0.5)}

def space(trial, strategy):
    return TrialSpec(
        target="digits", backbone="test_resnet", strategy=ARMS[strategy], source="scratch",
        shots=5, val_shots=4, test_shots=6, resolution=32, epochs=2, batch_size=16,
        lr=trial.suggest_float("lr", 1e-3, 1e-1, log=True),
    )

study = Study(compare={"strategy": ARMS}, space=space, trials=2, repeats=1, pruner="median")
'''


OPTIONS: dict[str, list[str]] = {
    "inline": [],
    "processes": ["--workers", "2"],
    **{f"shard {k}": ["--cells", f"{k}/2"] for k in (1, 2)},
}
Place = Callable[[str], Path]


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, with_stores: Callable[[Path], Path]
) -> Iterator[Place]:
    """Runs the study inline, by two processes, or as a shard with stores of its own; returns where."""
    found: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in found:
            folder = found[name] = tmp_path_factory.mktemp(name.replace(" ", "_"))
            with_stores(folder / "mlruns")
            (folder / "toy.py").write_text(STUDY)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("OMP_NUM_THREADS", "1")
                patch.chdir(folder)
                command = ["--space", "toy.py", "--device", "cpu", "--quiet", *OPTIONS[name]]
                assert main(command) == 0, name
        return found[name]

    yield run
    clear_caches()


def trials(*folders: Path) -> dict[tuple[str, str, int], TrialRecord]:
    """The attempts that settled each slot."""
    found: dict[tuple[str, str, int], TrialRecord] = {}
    for folder in folders:
        record = Record(read_storage(f"sqlite:///{folder}/mlruns/optuna.db"), folder / "mlruns")
        for trial in record.trials(record.info("toy")):
            assert trial.slot.key not in found, "a slot was run twice"
            found[trial.slot.key] = trial
    return found


def measured(trial: TrialRecord) -> tuple[object, ...]:
    """What must not depend on where it was run: all but times, memory, and where."""
    epochs = [(e.epoch, e.train_loss, e.val_loss, e.val_accuracy) for e in trial.epochs]
    scores = {k: v for k, v in trial.metrics.items() if k.startswith(("val_", "test_"))}
    return trial.outcome, trial.spec, epochs, scores, trial.predictions


@pytest.mark.parametrize("other", [("processes",), ("shard 1", "shard 2")], ids=" + ".join)
@pytest.mark.slow
def test_configurations_and_accuracies_are_those_of_one_process(
    other: tuple[str, ...], place: Place
) -> None:
    wanted = trials(place("inline"))
    found = trials(*map(place, other))
    assert len(wanted) == 2 * (2 + 1)
    assert {k: measured(t) for k, t in found.items()} == {k: measured(t) for k, t in wanted.items()}


def test_worker_knows_the_strategies_of_the_study_file_and_loads_no_store(
    place: Place,
) -> None:
    by_process = {
        int(file.name): json.loads(file.read_text())
        for file in (place("processes") / "seen").iterdir()
    }
    here = by_process.pop(
        os.getpid()
    )  # the coordinator, which tries the strategy before anything runs
    assert {"mlflow", "optuna"} <= set(here)
    assert by_process
    assert set(map(tuple, by_process.values())) == {("torch",)}
