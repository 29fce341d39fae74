"""Run a study: tune every cell, repeat the chosen configurations on fresh seeds, record every trial.

    python -m harness.study --space studies/freeze_depth.py

Running the same command again resumes the study where the last run stopped. From Python and notebooks:

    from harness import dry_run, run_study
    result = run_study("studies/freeze_depth.py", trials=3)
    result          # a table in a notebook

A study is a file, because its hash is recorded and other processes import it. In a notebook, `%%writefile`
creates one.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from harness.core.caller import no_garbage_collection, undisturbed
from harness.core.command_line import command, escaped_output
from harness.core.errors import UserError, without_password
from harness.core.study import Study
from harness.core.study_file import existing_study, load_study
from harness.search.options import OUTPUT, STUDY, StudyOptions

if TYPE_CHECKING:
    from harness.tracking.results import StudyResult


@undisturbed()
@escaped_output()
def run_study(
    path: str | Path, options: StudyOptions = StudyOptions(), **changes: Any
) -> StudyResult:
    """Run or resume a study, as `python -m harness.study` does; progress is printed.

    Args:
        path: the study file, or the name of a shipped study.
        options: how it is run.
        changes: of the options, by name: `trials=3, max_memory="8GiB"`.

    Raises:
        UserError: on bad input, or if the study ended early (the reason is printed).
    """
    file, options = existing_study(str(path)), dataclasses.replace(options, **changes)

    from harness.search.launch import launch
    from harness.tracking.results import load_result

    if launch(file, options):
        raise UserError(f"study {path} ended early; the reason is printed above")
    return load_result(load_study(file).name, options.tracking_uri)


@undisturbed()
@escaped_output()
def dry_run(path: str | Path, options: StudyOptions = StudyOptions(), **changes: Any) -> Study:
    """Print what `run_study` would run: cells, first trials, forecasts of memory and time.

    Args:
        path: the study file, or the name of a shipped study.
        options: how it is run.
        changes: of the options, by name.

    Returns:
        The study that the file defines; a table in a notebook.

    Raises:
        UserError: on bad input.
    """
    file = existing_study(str(path))

    from harness.search.launch import launch

    launch(file, dataclasses.replace(options, **changes), dry_run=True)
    return load_study(file)


def run(
    space: Annotated[str, STUDY],
    *,
    options: Annotated[StudyOptions, Parameter(name="*")] = StudyOptions(),
    dry_run: Annotated[bool, OUTPUT] = False,
) -> int:
    """Tune every cell of a study, and repeat the chosen configurations on fresh seeds.

    Running the same command again resumes the study where the last run stopped.

    Args:
        space: study file, a Python file (its code is run), or the name of a shipped study.
        options: how it is run.
        dry_run: print cells, trials, forecasts of memory and time; then stop.

    Raises:
        UserError: on bad input.
    """
    if not options.tracking_uri and (elsewhere := os.environ.get("MLFLOW_TRACKING_URI")):
        shown = without_password(elsewhere)
        print(
            f"warning: MLFLOW_TRACKING_URI={shown} is not used; --tracking-uri is", file=sys.stderr
        )
    file = existing_study(space)
    with no_garbage_collection():  # torch and Optuna: not for --help
        from harness.search.launch import launch

    return launch(file, options, dry_run)


main = command("harness.study", run, int, "run the same command again to resume")

if __name__ == "__main__":
    sys.exit(main())
