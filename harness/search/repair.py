"""What can be repaired of a recorded study, and how?

Optuna's word counts: MLflow's runs are ended, corrected or written again after it.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from harness.delivery import STANDS_FOR
from harness.environment import input_tags
from harness.record import Recorder, StudyInfo
from harness.record_runs import every_run
from harness.results import EpochResult, TrialResult
from harness.search.integrity import (
    Finding,
    Progress,
    Stores,
    Tried,
    every_trial,
    findings,
    is_held,
    progress_of,
    recorded_study,
    searches_begun,
)
from harness.search.leases import OWNER
from harness.search.runner import reap
from harness.spec import cell_label


@dataclass(frozen=True)
class Verdict:
    """What was found at last: what is left, what was repaired, how far the study is, who works on it."""

    left: tuple[Finding, ...]
    repaired: tuple[Finding, ...]
    progress: tuple[Progress, ...]
    at_work: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """True if nothing is wrong and nothing is missing."""
        return not self.left


def verify(info: StudyInfo, stores: Stores) -> Verdict:
    """Look, repair what can be repaired, and look again until nothing more can be.

    Raises:
        UserError: if one of the stores cannot be read.
    """
    stores.recorder.flush()
    repaired: list[Finding] = []
    for _ in range(3):  # ending what is dead may show what else it lacks
        found = findings(info, stores)
        curable = [f for f in found if f.cure]
        if not curable:
            break
        _cure(info, stores, curable)
        repaired += curable
    study, tried = recorded_study(info), every_trial(info, stores.storage)
    left = tuple(findings(info, stores))
    at_work = {t.trial.user_attrs[OWNER] for t in tried if is_held(t, stores.watch)}
    done = tuple(f for f in repaired if f not in left)
    return Verdict(left, done, tuple(progress_of(study, stores.storage)), tuple(sorted(at_work)))


def _cure(info: StudyInfo, stores: Stores, curable: list[Finding]) -> None:
    recorder = stores.recorder
    if any(f.cure == "reap" for f in curable):
        reap(recorded_study(info), stores.storage, recorder, stores.watch)
    for f in curable:
        if f.cure == "kill":
            recorder.finish(f.run_id, TrialResult("killed", reason="its runner died"))
        if f.tried is not None and f.cure == "end":
            recorder.end(f.run_id, f.tried.outcome)
        elif f.tried is not None and f.cure == "epochs":
            runs = every_run(info.name, stores.tracking_uri)
            known = next(run.epochs for run in runs if run.run_id == f.run_id)
            _write_epochs(recorder, f.run_id, f.tried.trial, known)
        elif f.tried is not None and f.cure == "write":
            _write_again(info, stores, f.tried)
    if any(f.cure == "write" for f in curable):
        for p in searches_begun(recorded_study(info), stores.storage):
            if p.phase == "repeat":
                recorder.supersede(cell_label(p.cell), p.chosen_index)


def _write_again(info: StudyInfo, stores: Stores, tried: Tried) -> None:
    """The run of a trial from what Optuna knows: all but predictions, environment and most of the curves."""
    attrs, recorder = tried.trial.user_attrs, stores.recorder
    cell = next((c for c in recorded_study(info).cells() if cell_label(c) == tried.cell), {})
    spec = attrs.get("spec", tried.trial.params)  # a space that failed made no spec
    earlier = [
        t
        for t in every_trial(info, stores.storage)
        if (t.cell, t.phase, t.chosen) == (tried.cell, tried.phase, tried.chosen)
        and t.trial.user_attrs.get("index") == attrs["index"]
        and t.trial.number < tried.trial.number
    ]
    tags: dict[str, object] = {
        STANDS_FOR: tried.run_id,
        "study": info.name,
        **input_tags(attrs.get("inputs", {})),
        **cell,
        "cell": tried.cell,
        "phase": tried.phase,
        "index": attrs["index"],
        **({"seed": spec["seed"]} if "seed" in spec else {}),
        "attempt": len(earlier) + 1,
        "optuna_trial": tried.trial.number,
        "restored": "from the search storage: without predictions, environment and most curves",
    }
    tags |= {} if tried.chosen is None else {"chosen": tried.chosen}
    tags |= {OWNER: attrs[OWNER]} if OWNER in attrs else {}
    kind = "trial" if tried.phase == "tune" else "repeat"
    run_id = recorder.start(spec, f"{tried.cell} {kind} {attrs['index']}", tags)
    _write_epochs(recorder, run_id, tried.trial)
    outcome: Any = tried.outcome
    recorder.finish(run_id, TrialResult(outcome, attrs.get("metrics", {}), attrs.get("reason", "")))


def _write_epochs(
    recorder: Recorder, run_id: str, trial: FrozenTrial, known: Collection[int] = ()
) -> None:
    """All but those that are known."""
    values, metrics = sorted(trial.intermediate_values.items()), trial.user_attrs.get("metrics", {})
    for epoch, accuracy in values:
        if epoch in known:
            continue
        last = epoch == values[-1][0]
        seen = {k: metrics.get(k, math.nan) if last else math.nan for k in _LAST}
        recorder.epoch(run_id, EpochResult(epoch, val_accuracy=accuracy, **seen))


_LAST = ("train_loss", "val_loss", "train_seconds", "marginal_seconds")
