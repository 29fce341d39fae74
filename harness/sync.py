"""Bring MLflow into agreement with a study's record, or only report the differences.

python -m harness.sync --study freeze_depth            # writes what is missing
python -m harness.sync --study freeze_depth --check    # only compares: exit code 1 if something differs
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.core.caller import undisturbed
from harness.core.command_line import command
from harness.core.errors import counted

if TYPE_CHECKING:
    from harness.tracking.study_runs import Difference


@dataclass(frozen=True)
class Synced:
    """Result of a comparison of MLflow with the record.

    Attributes:
        study: name of the study.
        trials: number of trials in the record.
        differences: differences that were found.
    """

    study: str
    trials: int
    differences: tuple[Difference, ...]

    @property
    def left(self) -> tuple[Difference, ...]:
        """Differences that are still there."""
        return tuple(d for d in self.differences if not d.corrected)


@undisturbed()
def sync_study(
    study: str,
    *,
    check: bool = False,
    restore: bool = False,
    storage: str | None = None,
    tracking_uri: str | None = None,
) -> Synced:
    """Bring MLflow into agreement with a study's record, or only report the differences.

    Args:
        study: name of the study.
        check: only report what differs; write nothing.
        restore: bring back runs that were deleted in MLflow's UI.
        storage: Optuna storage URL; the default is optuna.db beside MLflow's database.
        tracking_uri: MLflow tracking URI; the default is sqlite:///mlruns/mlflow.db.

    Raises:
        UserError: if there is no such study, a command works on it, or a store cannot be used.
    """
    from contextlib import nullcontext

    from harness.core.errors import one_line
    from harness.core.stores import default_tracking_uri
    from harness.search.lock import sole_runner
    from harness.search.record import read_record
    from harness.tracking.study_runs import StudyRuns

    record = read_record(storage, tracking_uri)
    info = record.info(study)
    with nullcontext() if check else sole_runner(record.folder, study):
        runs = StudyRuns(tracking_uri or default_tracking_uri(), info, record)
        with one_line("cannot sync with MLflow"):
            found = runs.sync(check, restore)
        return Synced(study, len(record.trials(info)), tuple(found))


def show(done: Synced) -> int:
    """Print the differences; returns 1 if some are left."""
    for found in done.differences:
        print(f"{'corrected' if found.corrected else 'differs'}: {found.what}")
    said = f"study {done.study}: {counted(done.trials, 'trial')} in the record"
    if not done.differences:
        print(f"{said}, and MLflow shows them as they are")
    else:
        corrected = len(done.differences) - len(done.left)
        print(f"{said}; {counted(corrected, 'difference')} corrected, {len(done.left)} left")
    return 1 if done.left else 0


main = command("harness.sync", sync_study, show)

if __name__ == "__main__":
    sys.exit(main())
