"""Show the progress of a study and the process that runs it; nothing is changed.

python -m harness.status --study freeze_depth
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.core.caller import undisturbed
from harness.core.command_line import AS_WRITTEN, command

if TYPE_CHECKING:
    from harness.search.overview import Overview


@undisturbed()
def study_status(
    study: str, *, storage: str | None = None, tracking_uri: str | None = None
) -> Overview:
    """Show the progress of a study and the process that runs it; nothing is changed.

    Args:
        study: name of the study.
        storage: Optuna storage URL; the default is optuna.db beside MLflow's database.
        tracking_uri: MLflow tracking URI; the default is sqlite:///mlruns/mlflow.db.

    Returns:
        A table in a notebook.

    Raises:
        UserError: if there is no such study, or a store cannot be read.
    """
    from harness.search.lock import holder_of
    from harness.search.overview import overview
    from harness.search.record import read_record

    record = read_record(storage, tracking_uri)
    info = record.info(study)
    found = overview(info, record.trials(info))
    return replace(found, holder=holder_of(record.folder, study))


def show(found: Overview) -> None:
    """Print it."""
    from rich.console import Console

    from harness.core.selection import METRICS
    from harness.search.progress import describe_epochs, picture

    Console(**AS_WRITTEN).print(picture(found))
    if found.holder is None:
        print(f"\n{'no process runs it now' if found.outcomes else 'it has no trial yet'}")
    elif found.holder.gone:
        print(
            f"\nit was left by {found.holder}, which died: run the same command again to resume it"
        )
    else:
        print(f"\nrunning: {found.holder}")
    metric, race = METRICS[found.info.metric], found.info.budget is not None
    for trial in found.working:
        since = "" if trial.started is None else f", since {trial.started:%Y-%m-%d %H:%M:%S}"
        print(f"  {trial.describe(race)}: {describe_epochs(trial, metric)}{since}")


main = command("harness.status", study_status, show)

if __name__ == "__main__":
    sys.exit(main())
