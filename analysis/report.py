"""Write the report of a study: one page that works offline, with figures and tables as files beside it.

    python -m analysis.report --study freeze_depth
    python -m analysis.report --compare freeze_depth freeze_depth_again
    python -m analysis.report --table runs.csv --mapping runs.toml [--measures similarity.csv]

Writes report/<study>/index.html, figures/*.png and *.svg, tables/*.csv, main.md and main.tex.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter
from cyclopts.validators import LimitedChoice

from harness.core.addresses import viewer_command
from harness.core.caller import undisturbed
from harness.core.command_line import command, program
from harness.core.errors import UserError
from harness.core.study import SAFE_NAME

if TYPE_CHECKING:  # imported where used: --help must not wait for them
    import jinja2
    import pandas as pd

    from analysis.compare import Findings
    from analysis.load import StudyTable
    from analysis.topics import Section


@undisturbed()
def build(table: StudyTable, output: Path, measures: pd.DataFrame | None = None) -> Path:
    """Write the report of one study.

    Args:
        table: the study as read.
        output: folder in which a folder named after the study is made.
        measures: similarity of source and target, see `compare.Findings`.

    Returns:
        The path of index.html. Figures and tables of an earlier report of the study are replaced.

    Raises:
        UserError: if the study's name cannot be used as a folder name, or no pair has measures.
        OSError: if the folder cannot be written.
    """
    from analysis import compare, text
    from analysis.plots import annotated_marks
    from analysis.topics import TOPICS

    folder = _empty_folder(output, table.info.name)
    found = compare.find(table, measures)
    sections = [topic(found) for topic in TOPICS]
    pictures = {}
    for section in sections:
        for plot in section.plots:
            png = plot.png()
            (folder / "figures" / f"{plot.name}.png").write_bytes(png)
            plot.figure.savefig(folder / "figures" / f"{plot.name}.svg")
            pictures[plot.name] = {
                "png": base64.b64encode(png).decode(),
                "annotations": annotated_marks(plot.figure),
            }
        for name, frame in section.tables.items():
            if len(frame):
                frame.to_csv(folder / "tables" / f"{name}.csv", index=False)
    methods = text.methods(found, [section.methods for section in sections])
    main_table = text.main_table(found)
    if len(main_table):
        for name, content in (
            ("main.md", text.markdown(main_table)),
            ("main.tex", text.latex(main_table, f"{table.info.name}: {methods}")),
        ):
            (folder / "tables" / name).write_text(content, encoding="utf-8")
    page = folder / "index.html"
    page.write_text(_render(found, sections, pictures, methods), encoding="utf-8")
    return page


def _empty_folder(output: Path, name: str) -> Path:
    """The study's folder under `output`, with empty figures/ and tables/."""
    if not SAFE_NAME.fullmatch(name) or not name.strip("."):
        raise UserError(f"study name {name!r} cannot be used as a folder name")
    folder = output / name
    for part, kinds in (("figures", ("png", "svg")), ("tables", ("csv", "md", "tex"))):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for kind in kinds:
            for stale in (folder / part).glob(f"*.{kind}"):
                stale.unlink()
    return folder


@undisturbed()
def build_comparison(first: StudyTable, second: StudyTable, output: Path) -> Path:
    """Write a page that compares two studies side by side, and its table; returns the path of the page.

    Raises:
        UserError: if a name cannot be used as a folder name, or the studies share no cell.
        OSError: if the folder cannot be written.
    """
    from analysis import compare, text

    folds = (first.info.folds, second.info.folds)
    rows = compare.side_by_side(first.trials, second.trials, folds)
    if not (rows["first"].notna() & rows["second"].notna()).any():
        raise UserError(
            f"{first.info.name} and {second.info.name} have no cell in common that both scored"
        )
    folder = _empty_folder(output, f"{first.info.name}-vs-{second.info.name}")
    rows.to_csv(folder / "tables" / "side_by_side.csv", index=False)
    page = folder / "index.html"
    content = _template("compare.html.j2").render(
        first=first.info,
        second=second.info,
        rows=rows.to_dict("records"),
        answer=text.changes(first, second, rows),
        metric=first.info.metric,
        folds=max(folds),
    )
    page.write_text(content, encoding="utf-8")
    return page


def _template(name: str) -> jinja2.Template:
    import jinja2

    from analysis.text.numbers import number

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template(name)


def _render(
    found: Findings,
    sections: Sequence[Section],
    pictures: Mapping[str, Mapping[str, object]],
    methods: str,
) -> str:
    """The page."""
    from analysis.compare import recorded
    from analysis.text import warnings
    from analysis.text.numbers import condition_rows

    table, runs = found.table, recorded(found.table.trials)
    question, _, notes = table.info.question.strip().partition("\n")
    times = table.trials["start_time"].dropna()
    return _template("report.html.j2").render(
        info=table.info,
        question=question or table.info.name,
        notes=notes.strip(),
        answer=[paragraph for section in sections for paragraph in section.answer],
        warnings=warnings(found),
        pictures=pictures,
        sections=[section for section in sections if section.parts],
        methods=methods,
        parameters=condition_rows(runs, ("param.", "prefix")),
        environment=condition_rows(runs, ("device", "threads", "env.")),
        runs=len(runs),
        period=f"{times.min():%Y-%m-%d %H:%M} to {times.max():%Y-%m-%d %H:%M} UTC"
        if len(times)
        else "",
        viewer=viewer_command(table.tracking_uri) if table.tracking_uri else "",
    )


WHAT = Parameter(
    group=Group("What to report (one of them)", validator=LimitedChoice(1, 1), sort_key=1)
)


def run(
    *,
    study: Annotated[str | None, WHAT] = None,
    compare: Annotated[tuple[str, str] | None, WHAT] = None,
    table: Annotated[Path | None, WHAT] = None,
    mapping: Path | None = None,
    measures: Path | None = None,
    tracking_uri: str | None = None,
    out: Path = Path("report"),
) -> None:
    """Write the report of a study as a single page, or a comparison of two studies.

    Args:
        study: name of a study (MLflow experiment).
        compare: names of two studies to compare side by side.
        table: table of trials from another program: .csv, .tsv (.gz), .parquet.
        mapping: file that says what the columns of the table mean (.toml, .json).
        measures: table with columns source, target and measures of their similarity (higher means more
            similar).
        tracking_uri: MLflow tracking URI; the default is sqlite:///mlruns/mlflow.db.
        out: folder in which a folder named after the study is made.

    Raises:
        UserError: if the study cannot be read, or the report cannot be written.
    """
    from analysis.load.external import load_measures, open_study

    try:
        if compare:
            found, second = (
                open_study(name, None, None, tracking_uri, predictions=False) for name in compare
            )
            page = build_comparison(found, second, out)
        else:
            known = load_measures(measures) if measures else None
            found = open_study(study, table, mapping, tracking_uri)
            page = build(found, out, known)
    except OSError as error:
        raise UserError(f"cannot write the report to {out}: {error}") from error
    print(f"report: {page.resolve()}")
    if found.tracking_uri and not compare:
        from analysis.publish import publish

        if parent := publish(found.info.name, found.tracking_uri, [page]):
            print(f"        also an artifact of run {parent} in MLflow")
    if found.tracking_uri:
        print(f"runs:   {viewer_command(found.tracking_uri, program('mlflow'))}")


main = command("analysis.report", run)

if __name__ == "__main__":
    sys.exit(main())
