"""Look at a data set, print what is found, draw its classes, and write a study file for it."""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import replace
from pathlib import Path

from harness.core.command_line import program
from harness.core.errors import UserError, counted, one_line
from harness.core.study import Study
from harness.core.study_file import load_study
from harness.core.units import Seconds
from harness.data.cached import default_cache
from harness.dataset_report.contact_sheet import draw, page
from harness.dataset_report.inspection import DataSetReport, inspect_target
from harness.dataset_report.proposal import Proposal, propose, source
from harness.dataset_report.text import details, findings
from harness.search.budget import check_first_round, least_seconds
from harness.search.costs import CellCost, busy_warnings, cell_costs, study_seconds
from harness.search.preflight import check_study
from harness.search.space import first_draw
from harness.similarity.sources.screening import screen
from harness.training.device import Device, resolve_device

LONG_MINUTES = 60.0


def write_study(
    target: str, out: Path, report: Path, device: str, budget: Seconds | None = None
) -> Study:
    """Look at a target, print what is found, draw its classes, and write a study file for it.

    Args:
        target: as in TrialSpec.
        out: the study file, from `new_study_file`; its stem is the study's name.
        report: folder in which a folder of the study's name gets classes.png and classes.html.
        device: name of the device whose time is forecast.
        budget: time for a race of the cells, of which the backbones at hand are screened first.

    Returns:
        The study as the file has it.

    Raises:
        UserError: if an image cannot be read, there are too few images, or the budget is too small.
    """
    where = resolve_device(device)
    survey = inspect_target(target)
    found = findings(survey)
    print(f"target {survey.target.name}", *(f"- {line}" for line in found), sep="\n")
    folder = show_classes(survey, report / out.stem, found)
    print(f"classes in pictures: {folder / 'classes.png'}, {folder / 'classes.html'}")
    if survey.broken:
        count, noun = len(survey.broken), survey.target.medium.noun
        raise UserError(
            f"{counted(count, noun)} cannot be read, first {next(iter(survey.broken))}; repair or "
            "remove what is listed in classes.html, then run this again"
        )
    proposal = propose(survey, target, where.name != "cpu", budget)
    if budget is not None:
        proposal = screened(proposal, out, where)
    study, costs = forecast(source(proposal, out, found, []), out.name, where)
    if budget is not None:
        proposal, costs = fitting(proposal, costs, budget)
    for line in proposal.notes:
        print(f"- {line}")
    if budget is not None:
        check_first_round(study, costs)
    lines = forecast_lines(study, costs, survey.nouns, where)
    print(*lines, sep="\n")
    _write(out, source(proposal, out, found, lines))
    command = f"{program('python')} -m harness.study --space {shlex.quote(str(out))}"
    print(f"wrote {out}: read and edit it, then\n    {command}")
    return load_study(out)


def show_classes(survey: DataSetReport, folder: Path, found: list[str]) -> Path:
    """Write classes.png and classes.html; returns their folder."""
    sheet = draw(survey)
    text = page(survey, sheet, found, details(survey))
    with one_line(f"cannot write to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        sheet.save(folder / "classes.png")
        (folder / "classes.html").write_bytes(text.encode("utf-8", "replace"))
    return folder


def screened(proposal: Proposal, out: Path, device: Device) -> Proposal:
    """The proposal with those of its backbones that screening keeps, and notes on that."""
    if len(proposal.backbones) < 2:
        note = (
            f"Nothing was screened: {', '.join(proposal.backbones)} is the only backbone for "
            f"{proposal.nouns} whose weights are installed."
        )
        return replace(proposal, notes=(*proposal.notes, note))
    study = _study_of(source(proposal, out, [], []), out.name)
    specs = [first_draw(study, cell) for cell in study.cells()]
    result = screen(specs, device, default_cache())
    notes = (*proposal.notes, *result.describe())
    return replace(proposal, backbones=result.kept, notes=notes)


def fitting(
    proposal: Proposal, costs: list[CellCost], budget: Seconds
) -> tuple[Proposal, list[CellCost]]:
    """The proposal with as many of its backbones, from the first on, as the budget has time for, and the
    costs of their cells."""
    strategies, count = len(proposal.strategies), len(proposal.backbones)
    while count > 1 and least_seconds(costs[: count * strategies]) > budget:
        count -= 1
    if count == len(proposal.backbones):
        return proposal, costs
    note = (
        f"Left out because, by the forecast, {budget} is too short for the first trials of their cells: "
        f"{', '.join(proposal.backbones[count:])}."
    )
    kept = replace(proposal, backbones=proposal.backbones[:count], notes=(*proposal.notes, note))
    return kept, costs[: count * strategies]


def forecast(text: str, name: str, device: Device) -> tuple[Study, list[CellCost]]:
    """The study of that source text, and what each of its cells would take on this machine. All checks of a
    study are made first."""
    cache, study = default_cache(), _study_of(text, name)
    checked = check_study(study, cache)
    return study, list(cell_costs(checked.specs, device, cache))


def forecast_lines(study: Study, costs: list[CellCost], nouns: str, device: Device) -> list[str]:
    """What these cells of the study would take, in print."""
    lines = [
        f"on {device.name} ({device.describe()}), per cell: accelerator memory, seconds a trial"
    ]
    lines += [
        f"{c.cell}: {c.memory.peak_mib:.0f} MiB"
        + (f", {c.seconds:.1f} s" if c.seconds is not None else "")
        for c in costs
    ]
    lines += busy_warnings(costs)
    if study.budget is not None:
        return [*lines, f"a race of {len(costs)} cells in {study.budget}"]
    minutes = study_seconds(study, costs) / 60
    count = len(costs) * study.runs_per_cell
    lines.append(
        f"{counted(len(costs), 'cell')} x ({study.effort}) = {counted(count, 'run')}: "
        f"{minutes:.0f} minutes of training without the cache"
    )
    if minutes > LONG_MINUTES:
        smaller = "fewer tokens" if nouns == "texts" else "a lower resolution"
        if study.fold_count > 1:
            smaller = f"a single split instead of {study.fold_count} folds, {smaller}"
        lines.append(f"that is long: fewer backbones, {smaller} or fewer epochs shorten it")
    return lines


def _study_of(text: str, name: str) -> Study:
    """The study of that source text, as if it were in a file of that name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_text(text, encoding="utf-8")
        return load_study(path)


def _write(path: Path, text: str) -> None:
    with one_line(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
