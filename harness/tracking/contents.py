"""Contents of a study's MLflow runs: tags and metrics made from the record, and comparison with it.

The parameters of a run are the complete flat TrialSpec; metric names contain the unit.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from statistics import fmean

from mlflow.entities import Metric, Run

from harness.core.records import StudyInfo, TrialRecord
from harness.core.results import EpochResult
from harness.core.selection import METRICS
from harness.core.study import cell_label
from harness.tracking.experiment import finite, storable
from harness.training.provenance import input_tags

PER_EPOCH = ("train_loss", "train_seconds", "marginal_seconds")
"""Metrics with one value per epoch, besides those on the validation examples. MLflow shows the last value,
which is that of the trial."""
SUMMARISED = (
    *(m for metric in METRICS.values() for m in (metric.validation, metric.test)),
    "train_seconds",
)
"""Metrics of which a cell has the mean over its repeats."""
STATUS = {"": "RUNNING", "complete": "FINISHED", "pruned": "FINISHED", "killed": "KILLED"}
"""MLflow's run status for an outcome; all other outcomes are FAILED."""
KEY = "trial_key"
"""Tag with the key of a run's trial."""
AGREED = "agrees with the record"
"""Tag of an experiment: up to which start time (ms) the runs of all trials agreed with the record, and a hash
of what was recorded of these trials."""
UNFOLD = (
    "Click the + beside the study's run to see its cells, the + beside a cell to see its trials."
)
"""Text above the only row that the UI shows at first."""


def experiment_tags(info: StudyInfo) -> dict[str, str]:
    """The study as tags of its experiment: lists and mappings as JSON."""
    return {
        "mlflow.experimentKind": "custom_model_development",  # the UI opens on runs, not on traces
        "mlflow.note.content": f"{info.question}\n\n    {info.command}\n\n{UNFOLD}",
        "question": info.question,
        "command": info.command,
        "factors": json.dumps({k: list(v) for k, v in info.factors.items()}),
        "baseline": json.dumps(dict(info.baseline)),
        "trials": str(info.trials),
        "repeats": str(info.repeats),
        "sampler": info.sampler,
        "folds": str(info.folds),
        "leaks": "\n".join(info.leaks),
        "study_file": info.study_file,
        "space_sha256": info.space_sha256,
        "metric": info.metric,
        **({} if info.budget is None else {"budget": f"{info.budget:g}"}),
    }


def run_tags(trial: TrialRecord) -> dict[str, object]:
    """Tags that identify a run's trial, its machine and its inputs."""
    chosen = {} if trial.chosen is None else {"chosen": trial.chosen}
    repeat = {} if trial.slot.phase == "tune" else {"superseded": str(trial.superseded).lower()}
    return {
        "study": trial.study,
        KEY: trial.key,
        **trial.provenance,
        **input_tags(trial.inputs),
        **trial.slot.cell,
        "cell": cell_label(trial.slot.cell),
        "phase": trial.slot.phase,
        "index": trial.slot.index,
        **({} if trial.seed is None else {"seed": trial.seed}),
        "attempt": trial.attempt,
        "optuna_trial": trial.number,
        **chosen,
        **repeat,
    }


def cell_summary(trials: Iterable[TrialRecord]) -> dict[str, float]:
    """Metrics of a cell with complete repeats: validation of the chosen configuration, means over the
    repeats."""
    every = list(trials)
    repeats = [
        t
        for t in every
        if t.slot.phase == "repeat" and t.outcome == "complete" and not t.superseded
    ]
    if not repeats:
        return {}
    chosen = repeats[0].chosen
    tuned = [
        t.metrics
        for t in every
        if t.slot.phase == "tune" and t.slot.round == chosen and t.outcome == "complete"
    ]
    best = {
        f"best_{name}": fmean(metrics[name] for metrics in tuned)
        for name in (tuned[0] if tuned else {})
        if name.startswith("val_") and all(name in metrics for metrics in tuned)
    }
    means = {
        f"mean_{name}": fmean(t.metrics[name] for t in repeats)
        for name in SUMMARISED
        if all(name in t.metrics for t in repeats)
    }
    return {**best, **means}


def epoch_metrics(trial: TrialRecord, epoch: EpochResult) -> list[Metric]:
    """One point per metric, with a timestamp that does not depend on the time of writing, so that writing
    it again changes nothing."""
    values = finite({name: getattr(epoch, name) for name in PER_EPOCH} | epoch.validation)
    at = milliseconds(trial) + int(1000 * values.get("train_seconds", 0.0)) + epoch.epoch
    return [Metric(k, v, at, epoch.epoch) for k, v in values.items()]


def final_metrics(trial: TrialRecord) -> dict[str, float]:
    """The metrics of a trial that have no value per epoch."""
    return {
        k: v
        for k, v in finite(trial.metrics).items()
        if k not in PER_EPOCH and not k.startswith("val_")
    }


def status_of(trial: TrialRecord) -> str:
    """MLflow's status of the run of a trial."""
    return STATUS.get(trial.outcome, "FAILED")


def milliseconds(trial: TrialRecord, over: bool = False) -> int:
    """Time at which a trial started, or ended, in milliseconds since 1970; now if it is not known."""
    moment = trial.ended if over and trial.ended else trial.started
    return int(time.time() * 1000) if moment is None else int(moment.timestamp() * 1000)


def difference(trial: TrialRecord, run: Run) -> str:
    """Describe how the run of a trial differs from the record; "" if it does not."""
    said = run.data.tags.get("outcome", "")
    if (said, run.info.status) != (trial.outcome, status_of(trial)):
        return (
            f"is {trial.outcome or 'running'}, its run says {said or 'nothing'} ({run.info.status})"
        )
    wanted = storable({k: v for k, v in run_tags(trial).items() if k not in trial.provenance})
    other = [k for k, v in wanted.items() if run.data.tags.get(k) != v]
    lacking = [k for k in finite(trial.metrics) if k not in run.data.metrics]
    if other or lacking:
        return f"differs from its run in {', '.join([*other, *lacking][:5])}"
    return ""


def agreement(trials: Iterable[TrialRecord]) -> str:
    """The value of the tag AGREED, if the runs of all these trials agree with the record."""
    every = list(trials)
    open_since = [milliseconds(trial) for trial in every if not trial.outcome]
    ended = [1 + milliseconds(trial) for trial in every]
    until = min(open_since, default=max(ended, default=0))
    return f"{until} {_recorded_before(until, every)}"


def agreed_until(trials: Iterable[TrialRecord], agreed: str) -> int:
    """Start time in milliseconds from which on trials may differ from their runs; 0 if all may.

    Args:
        trials: all trials of the study.
        agreed: the value of the tag AGREED; "" if there is none.
    """
    until, _, recorded = agreed.partition(" ")
    if not until.isdecimal() or recorded != _recorded_before(int(until), trials):
        return 0
    return int(until)


def _recorded_before(until: int, trials: Iterable[TrialRecord]) -> str:
    """Hash of what identifies the trials that started before that time, and of what may still change in their
    record. Their start times tell them from trials of another record, which have the same keys."""
    started = [(milliseconds(trial), trial) for trial in trials]
    mine = [(t.key, ms, t.outcome, t.superseded, t.chosen) for ms, t in started if ms < until]
    return hashlib.sha256(repr(sorted(mine)).encode()).hexdigest()


def contradicts(trial: TrialRecord, run: Run) -> bool:
    """True if the run has values that the trial never had. It then shows a trial of an earlier, lost record,
    because parameters and final metrics of a run are never changed."""
    params = storable(trial.spec or trial.params)
    if any(run.data.params.get(k, v) != v for k, v in params.items()):
        return True
    ended = "outcome" in run.data.tags
    return ended and any(run.data.metrics.get(k, v) != v for k, v in final_metrics(trial).items())


def wholeness(run: Run) -> tuple[bool, bool, int, str]:
    """Sort key of several runs of one trial; the run with the greatest key is kept."""
    complete = run.data.tags.get("outcome") == "complete"
    return complete, "outcome" in run.data.tags, -run.info.start_time, run.info.run_id


def is_closed(run: Run) -> bool:
    """True if the run has ended and does not count as a complete trial."""
    return run.info.status != "RUNNING" and run.data.tags.get("outcome") not in (None, "complete")
