"""Do the two stores tell one story, and a whole one? What is wrong with a recorded study.

Five things must hold, whatever happened to whom:

    I1  every trial has come to one end, the same in Optuna and in MLflow
    I2  nothing is marked as running unless somebody works on it
    I3  every cell has as many trials and repeats as were asked for
    I4  no slot is complete twice, and no configuration was drawn twice
    I5  the epochs of each run follow each other without gaps or repetitions

`repair` makes good what can be.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NoReturn

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from harness.delivery import STATUS
from harness.errors import UserError
from harness.record import Recorder, StudyInfo
from harness.record_runs import Stored, every_run
from harness.search.cells import CellSearch
from harness.search.leases import OWNER, Watch, died_here
from harness.search.trials import YIELDED, trials_of
from harness.spec import Phase, Study, TrialSpec, cell_label

Cure = Literal["reap", "end", "kill", "write", "epochs", ""]


@dataclass(frozen=True)
class Tried:
    """A trial of Optuna's, and its place in the study; those that yielded to another process are left out."""

    trial: FrozenTrial
    cell: str
    phase: Phase
    chosen: int | None

    def __str__(self) -> str:
        kind = "trial" if self.phase == "tune" else "repeat"
        return f"{self.cell}, {kind} {self.trial.user_attrs.get('index', '?')}"

    @property
    def outcome(self) -> str:
        """How it ended, as Optuna has it."""
        outcome: str = self.trial.user_attrs.get("outcome", "killed")
        return outcome

    @property
    def run_id(self) -> str:
        """Of its run in MLflow; "" if it has none."""
        run_id: str = self.trial.user_attrs.get("run_id", "")
        return run_id

    @property
    def place(self) -> tuple[str, str, str, str]:
        """As the tags of its run name it."""
        chosen = "" if self.chosen is None else str(self.chosen)
        return self.cell, self.phase, chosen, str(self.trial.number)


@dataclass(frozen=True)
class Finding:
    """Something that does not hold.

    Attributes:
        invariant: which of the five, e.g. "I1".
        what: is wrong, in words.
        cure: what would repair it; "" if nothing here would.
        tried: the trial that it is about.
        run_id: the run that it is about.
    """

    invariant: str
    what: str
    cure: Cure = ""
    tried: Tried | None = None
    run_id: str = ""


@dataclass(frozen=True)
class Progress:
    """How far a cell is: so many slots asked for, and the outcome of those that need no more work."""

    cell: str
    phase: Phase
    asked: int
    ends: tuple[str, ...]

    def __str__(self) -> str:
        kind = "trials" if self.phase == "tune" else "repeats"
        counts = Counter(self.ends)
        others = [f"{n} {outcome}" for outcome, n in counts.items() if outcome != "complete"]
        missing = self.asked - len(self.ends)
        others += [f"{missing} missing"] * bool(missing)
        but = f" ({', '.join(others)})" if others else ""
        return f"{self.cell}: {counts['complete']} of {self.asked} {kind} complete{but}"


@dataclass(frozen=True)
class Stores:
    """Where the study is recorded, and who looks."""

    storage: optuna.storages.BaseStorage
    tracking_uri: str
    recorder: Recorder
    watch: Watch


def findings(info: StudyInfo, stores: Stores) -> list[Finding]:
    """Everything that does not hold now; nothing is changed.

    Raises:
        UserError: if one of the stores cannot be read.
    """
    # Others may work meanwhile: a run is opened before its trial is ended, so runs are read last.
    tried = every_trial(info, stores.storage)
    runs = every_run(info.name, stores.tracking_uri)
    by_id = {run.run_id: run for run in runs}
    return [
        *_waiting(stores.recorder),
        *_running(tried, runs, stores.watch),
        *_ends(tried, by_id),
        *_unknown(tried, runs),
        *_asked(progress_of(recorded_study(info), stores.storage)),
        *_twice(tried),
        *_epochs(tried, by_id),
    ]


def _waiting(recorder: Recorder) -> Iterator[Finding]:
    if count := recorder.flush():
        yield Finding("I1", f"the tracking store lacks what is kept for it of {count} runs")


def _running(tried: list[Tried], runs: list[Stored], watch: Watch) -> Iterator[Finding]:
    known = {t.run_id: t for t in tried if t.run_id}
    held = {t.run_id for t in tried if is_held(t, watch)}
    for t in tried:
        if not t.trial.state.is_finished() and not is_held(t, watch):
            yield Finding("I2", f"{t} is marked as running, and nobody works on it", "reap", t)
    for run in runs:
        if run.status != "RUNNING" or run.run_id in held:
            continue
        owner = run.tags.get(OWNER, "")
        what = f"run {run.run_id} is marked as running, and nobody works on it"
        if run.run_id in known or owner in ("", watch.me.name) or died_here(owner):
            yield Finding("I2", what, "reap", run_id=run.run_id)
        elif found := _by_place(tried, run):
            if found.trial.state.is_finished():
                yield Finding("I2", what, "kill", found, run.run_id)
        else:
            yield Finding(
                "I2", f"run {run.run_id} of {owner} is marked as running; no trial has it"
            )


def _by_place(tried: list[Tried], run: Stored) -> Tried | None:
    """The trial that a run was begun for, which never knew of it."""
    tags = run.tags
    names = ("cell", "phase", "chosen", "optuna_trial")
    place = tuple(tags.get(name, "") for name in names)
    return next((t for t in tried if t.place == place), None)


def _ends(tried: list[Tried], by_id: Mapping[str, Stored]) -> Iterator[Finding]:
    for t in tried:
        if not t.trial.state.is_finished():
            continue
        values = t.trial.values or []
        if t.trial.state == TrialState.COMPLETE and not all(map(math.isfinite, values)):
            yield Finding("I1", f"{t} is complete with the value {values}", tried=t)
        if t.outcome == "complete" and t.trial.state != TrialState.COMPLETE:
            yield Finding(
                "I1", f"{t} is complete, but Optuna has it as {t.trial.state.name}", tried=t
            )
        run = by_id.get(t.run_id)
        if run is None:
            if t.run_id:
                yield Finding("I1", f"{t} ({t.outcome}) is missing in MLflow", "write", t)
            continue
        outcome, status = run.tags.get("outcome", "none"), STATUS.get(t.outcome, "FAILED")
        if run.status != "RUNNING" and (outcome, run.status) != (t.outcome, status):
            words = f"{t} is {t.outcome} in Optuna, {outcome} ({run.status}) in MLflow"
            yield Finding("I1", words, "end", t, t.run_id)


def _unknown(tried: list[Tried], runs: list[Stored]) -> Iterator[Finding]:
    known = {t.run_id for t in tried}
    for run in runs:
        if run.run_id not in known and run.tags.get("outcome") == "complete":
            what = f"run {run.run_id} is complete in MLflow and unknown to the search storage"
            yield Finding("I1", what, run_id=run.run_id)


def _asked(progress: Iterable[Progress]) -> Iterator[Finding]:
    for p in progress:
        if len(p.ends) < p.asked:
            yield Finding("I3", f"{p}; run the study's command again")


def _twice(tried: list[Tried]) -> Iterator[Finding]:
    slots: dict[tuple[object, ...], list[Tried]] = defaultdict(list)
    draws: dict[tuple[object, ...], set[int]] = defaultdict(set)
    for t in tried:
        index = t.trial.user_attrs.get("index")
        if index is None:
            continue
        if t.outcome == "complete" and t.trial.state == TrialState.COMPLETE:
            slots[(t.cell, t.phase, t.chosen, index)].append(t)
        if t.phase == "tune" and any(map(_is_continuous, t.trial.distributions.values())):
            drawn = tuple(sorted(t.trial.params.items()))
            draws[(t.cell, drawn)].add(index)
    for same in slots.values():
        if len(same) > 1:
            numbers = ", ".join(str(t.trial.number) for t in same)
            yield Finding("I4", f"{same[0]} is complete {len(same)} times (Optuna's {numbers})")
    for (label, values), indices in draws.items():
        if len(indices) > 1:
            words = ", ".join(map(str, sorted(indices)))
            yield Finding("I4", f"{label}: trials {words} drew the same configuration {values}")


def _is_continuous(distribution: optuna.distributions.BaseDistribution) -> bool:
    """True if equal draws from it cannot be chance."""
    return isinstance(distribution, FloatDistribution) and (
        distribution.step is None and distribution.low < distribution.high
    )


def _epochs(tried: list[Tried], by_id: Mapping[str, Stored]) -> Iterator[Finding]:
    for t in tried:
        run = by_id.get(t.run_id)
        if run is None or not t.trial.state.is_finished():
            continue
        wanted = sorted(t.trial.intermediate_values)
        missing = [e for e in wanted if e not in run.epochs]
        if missing and t.outcome == "complete":
            what = f"{t} lacks the epochs {missing} in MLflow"
            yield Finding("I5", what, "epochs", t, t.run_id)
        epochs = sorted(run.epochs)
        if not missing and epochs and epochs != list(range(epochs[0], epochs[0] + len(epochs))):
            yield Finding("I5", f"{t} has the epochs {epochs} in MLflow", tried=t)


# --- what is read ----------------------------------------------------------------------------------


def is_held(tried: Tried, watch: Watch) -> bool:
    return tried.trial.state == TrialState.RUNNING and not watch.is_over(tried.trial)


def every_trial(info: StudyInfo, storage: optuna.storages.BaseStorage) -> list[Tried]:
    found = []
    for study, trial in trials_of(recorded_study(info), storage, *TrialState):
        if trial.user_attrs.get("outcome") == YIELDED:
            continue
        label, _, chosen = study.study_name.removeprefix(f"{info.name}/").partition("/repeats of ")
        phase: Phase = "repeat" if chosen else "tune"
        found.append(Tried(trial, label, phase, int(chosen) if chosen else None))
    return found


def recorded_study(info: StudyInfo) -> Study:
    """The study without its space, which is not needed to judge what is recorded."""

    def unknown(*_: object, **__: object) -> NoReturn:
        raise UserError("the space of a recorded study is not known")

    space: Callable[..., TrialSpec] = unknown
    return Study(info.factors, space, info.trials, info.repeats, name=info.name)


def searches_begun(study: Study, storage: optuna.storages.BaseStorage) -> Iterator[CellSearch]:
    """The cells as far as they were begun, first for tuning, then for the repeats of what they choose."""
    names = set(optuna.get_all_study_names(storage))
    begun = [c for c in study.cells() if f"{study.name}/{cell_label(c)}" in names]
    for cell in begun:
        search = CellSearch(study, cell, storage)
        yield search
        best = search.choose()
        if best is None:
            continue
        index = best.user_attrs["index"]
        if f"{study.name}/{cell_label(cell)}/repeats of {index}" in names:
            yield CellSearch(study, cell, storage, best)


def progress_of(study: Study, storage: optuna.storages.BaseStorage) -> Iterator[Progress]:
    found = {(cell_label(s.cell), s.phase): s for s in searches_begun(study, storage)}
    for cell in map(cell_label, study.cells()):
        asked: tuple[tuple[Phase, int], ...] = (("tune", study.trials), ("repeat", study.repeats))
        for phase, count in asked:
            search = found.get((cell, phase))
            ends = search.ends(count) if search else ()
            if phase == "repeat" and not _has_choice(found.get((cell, "tune")), study):
                continue  # a cell without a complete trial has nothing to repeat
            yield Progress(cell, phase, count, ends)


def _has_choice(tuning: CellSearch | None, study: Study) -> bool:
    """False if every trial of the cell has ended, and none completed."""
    unfinished = tuning is None or len(tuning.ends(study.trials)) < study.trials
    return unfinished or (tuning is not None and tuning.choose() is not None)
