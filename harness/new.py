"""Inspect a data set, print the findings, and write a study file to edit.

    python -m harness.new --target folder:PATH
    python -m harness.new --target folder:PATH --budget 20m    # a race of the most promising backbones

It also writes a contact sheet of the classes, classes.png and classes.html, in report/NAME/. A study file is
never overwritten.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from harness.core.caller import undisturbed
from harness.core.command_line import TIME, File, command
from harness.core.study import Study
from harness.core.study_file import new_study_file
from harness.core.units import Seconds

if TYPE_CHECKING:
    from harness.dataset_report.inspection import DataSetReport


@undisturbed()
def look_at(target: str) -> DataSetReport:
    """Inspect a data set: counts, sizes, broken and duplicate examples; a page with pictures in a notebook.

    Args:
        target: as in TrialSpec, e.g. "folder:PATH".

    Raises:
        UserError: if there is no such target, or no example of it can be read.
    """
    from harness.dataset_report.inspection import inspect_target

    return inspect_target(target)


@undisturbed()
def propose_study(
    target: str,
    *,
    budget: Annotated[Seconds | str | None, TIME] = None,
    out: File | None = None,
    report: File = Path("report"),
    device: str = "auto",
) -> Study:
    """Inspect a data set, print the findings, draw its classes, and write a study file to edit.

    Args:
        target: as in TrialSpec, e.g. folder:PATH, csv:PATH or digits.
        budget: time for all trials of the study, e.g. 20m, in which its cells race. Before that, all
            installed backbones are screened by a linear probe and nearest neighbours on frozen features; as
            many of the best as fit into this time are compared.
        out: study file to write, by default studies/NAME.py; an existing file is not overwritten.
        report: folder in which a folder of the study's name gets classes.png and classes.html.
        device: auto, cpu, cuda or mps; times are forecast for it.

    Returns:
        The study that the file defines.

    Raises:
        UserError: if the file exists already, an example cannot be read, there are too few, or the budget is
            invalid or too small.
    """
    path = new_study_file(target, out)  # before torch is imported, which takes seconds
    seconds = None if budget is None else Seconds(budget)

    from harness.dataset_report.new_study import write_study

    return write_study(target, path, Path(report), device, seconds)


main = command("harness.new", propose_study)

if __name__ == "__main__":
    sys.exit(main())
