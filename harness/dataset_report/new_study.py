"""Look at a data set, print what is found, draw its classes, and write a study file for it."""

from __future__ import annotations

import re
import shlex
import tempfile
from pathlib import Path

from harness.core.command_line import program
from harness.core.errors import UserError
from harness.core.study import SAFE_NAME, Study
from harness.core.study_file import load_study
from harness.data.cached import Cache, default_folder
from harness.dataset_report.contact_sheet import draw, page
from harness.dataset_report.inspection import DataSetReport, inspect_target
from harness.dataset_report.proposal import propose, source
from harness.dataset_report.text import details, findings
from harness.search.costs import cell_costs, study_seconds
from harness.search.preflight import check_study
from harness.training.device import Device, resolve_device

LONG_MINUTES = 60.0


def slug(target: str) -> str:
    """A name for the study of that target: letters, digits and underscores."""
    inner = target.partition("[")[0]
    last = Path(inner.partition(":")[2] or inner).expanduser().resolve().stem
    return re.sub(r"\W+", "_", last, flags=re.ASCII).strip("_").lower()[:60] or "my_study"


def write_study(target: str, out: Path, report: Path, device: str) -> Study:
    """Look at a target, print what is found, draw its classes, and write a study file for it.

    Args:
        target: as in TrialSpec.
        out: the study file; its stem is the study's name.
        report: folder in which a folder of the study's name gets classes.png and classes.html.
        device: name of the device whose time is forecast.

    Returns:
        The study as the file has it.

    Raises:
        UserError: if the file is there already, an image cannot be read, or there are too few images.
    """
    if out.suffix != ".py" or not SAFE_NAME.fullmatch(out.stem):
        raise UserError(f"--out {out}: want a file such as studies/my_study.py")
    if out.exists():
        raise UserError(f"{out} exists and is not overwritten; name another file with --out")
    where = resolve_device(device)
    survey = inspect_target(target)
    found = findings(survey)
    print(f"target {survey.target.name}", *(f"- {line}" for line in found), sep="\n")
    folder = show_classes(survey, report / out.stem, found)
    print(f"classes in pictures: {folder / 'classes.png'}, {folder / 'classes.html'}")
    if survey.broken:
        raise UserError(
            f"{len(survey.broken)} {survey.nouns} cannot be read, first {next(iter(survey.broken))}; repair "
            "or remove them (all are listed in classes.html), then run this again"
        )
    proposal = propose(survey, target, where.name != "cpu")
    for line in proposal.notes:
        print(f"- {line}")
    lines = forecast_lines(source(proposal, out, found, []), out.name, survey.nouns, where)
    print(*lines, sep="\n")
    _write(out, source(proposal, out, found, lines))
    command = f"{program('python')} -m harness.study --space {shlex.quote(str(out))}"
    print(f"wrote {out}: read and edit it, then\n    {command}")
    return load_study(out)


def show_classes(survey: DataSetReport, folder: Path, found: list[str]) -> Path:
    """Write classes.png and classes.html; returns their folder."""
    sheet = draw(survey)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sheet.save(folder / "classes.png")
        text = page(survey, sheet, found, details(survey))
        (folder / "classes.html").write_bytes(text.encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    return folder


def forecast_lines(text: str, name: str, nouns: str, device: Device) -> list[str]:
    """What the study of that source text would take on this machine. All checks of a study are made first."""
    cache = Cache(default_folder())
    if cache.problem():
        cache = Cache(None, 0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_text(text, encoding="utf-8")
        study = load_study(path)
        checked = check_study(study, cache)
    costs = list(cell_costs(checked.specs, device, cache))
    minutes = study_seconds(study, costs) / 60
    lines = [
        f"on {device.name} ({device.describe()}), per cell: accelerator memory, seconds a trial"
    ]
    lines += [
        f"{c.cell}: {c.memory.peak_mib:.0f} MiB"
        + (f", {c.seconds:.1f} s" if c.seconds is not None else "")
        for c in costs
    ]
    count = len(study.cells()) * study.runs_per_cell
    lines.append(
        f"{len(study.cells())} cells x ({study.effort}) = {count} runs: "
        f"{minutes:.0f} minutes of training without the cache"
    )
    if minutes > LONG_MINUTES:
        smaller = "fewer tokens" if nouns == "texts" else "a lower resolution"
        lines.append(f"that is long: fewer backbones, {smaller} or fewer epochs shorten it")
    return lines


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
