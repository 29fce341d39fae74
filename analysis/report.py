"""What did a study find, and how sure is it? One page that needs no network, figures and tables.

    python -m analysis.report --study freeze_depth
    python -m analysis.report --compare freeze_depth freeze_depth_again
    python -m analysis.report --table runs.csv --mapping runs.toml [--measures similarity.csv]

Writes report/<study>/index.html, figures/*.png and *.svg, tables/*.csv, main.md and main.tex.
"""

from __future__ import annotations

import argparse
import base64
import io
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.caller import undisturbed
from harness.core.command_line import Parser, program, run_command
from harness.core.errors import UserError, without_password
from harness.core.spec import SAFE_NAME

if TYPE_CHECKING:  # imported where used: --help must not wait for them
    import jinja2
    import pandas as pd

    from analysis.compare import Findings, Similarity
    from analysis.load import StudyTable


VIEWER = "http://127.0.0.1:5000"
"""Where `viewer_command` serves."""
MANY_ROWS = 30
"""Rows above which a table is folded."""
SHOWN_FAILURES = 100


def viewer_command(tracking_uri: str, mlflow: str = "mlflow") -> str:
    """What to type, or where to go, to look at the runs in MLflow; never shows a password.

    Args:
        tracking_uri: the store.
        mlflow: how to type MLflow's program.
    """
    uri = without_password(tracking_uri)
    if uri.startswith(("http://", "https://")):
        return f"open {uri} in a browser"
    return f"{mlflow} ui --backend-store-uri {shlex.quote(uri)} --host 127.0.0.1 --workers 1"


def run_link(table: StudyTable) -> str:
    """What a run's id is put behind to get its page in MLflow; "" for a study that is not from there."""
    if not table.info.experiment_id:
        return ""
    uri = without_password(table.tracking_uri)
    server = uri.rstrip("/") if uri.startswith(("http://", "https://")) else VIEWER
    return f"{server}/#/experiments/{table.info.experiment_id}/runs/"


@undisturbed()
def build(table: StudyTable, output: Path, measures: pd.DataFrame | None = None) -> Path:
    """Write the report of one study.

    Args:
        table: the study as read.
        output: folder that gets a folder named after the study.
        measures: similarity of source and target, see `compare.find`.

    Returns:
        The path of index.html. Figures and tables of an earlier report of the study are replaced.

    Raises:
        UserError: if the study's name cannot be a folder's, or the measures fit no pair.
        OSError: if the folder cannot be written.
    """
    from analysis import compare, plots, text

    folder = _fresh(output, table.info.name)
    found = compare.find(table, measures)
    images, annotations = {}, {}
    for name, figure in plots.figures(table, found).items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        (folder / "figures" / f"{name}.png").write_bytes(buffer.getvalue())
        figure.savefig(folder / "figures" / f"{name}.svg")
        images[name] = base64.b64encode(buffer.getvalue()).decode()
        annotations[name] = plots.annotations(figure)
    for name, frame in {**found.tables(), "trials": table.trials}.items():
        if len(frame):
            frame.to_csv(folder / "tables" / f"{name}.csv", index=False)
    main_table = text.main_table(table, found)
    if len(main_table):
        caption = f"{table.info.name}: {text.methods(table, found)}"
        for name, content in (
            ("main.md", text.markdown(main_table)),
            ("main.tex", text.latex(main_table, caption)),
        ):
            (folder / "tables" / name).write_text(content, encoding="utf-8")
    page = folder / "index.html"
    page.write_text(render(table, found, images, annotations), encoding="utf-8")
    return page


def _fresh(output: Path, name: str) -> Path:
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
    """Write the page that puts two studies side by side, and its table; returns the page's path.

    Raises:
        UserError: if a name cannot be a folder's, or the studies share no cell.
        OSError: if the folder cannot be written.
    """
    from analysis import compare, text

    rows = compare.side_by_side(first.trials, second.trials)
    if not (rows["first"].notna() & rows["second"].notna()).any():
        raise UserError(
            f"{first.info.name} and {second.info.name} have no cell in common that both scored"
        )
    folder = _fresh(output, f"{first.info.name}-vs-{second.info.name}")
    rows.to_csv(folder / "tables" / "side_by_side.csv", index=False)
    page = folder / "index.html"
    html = _template("compare.html.j2").render(
        first=first.info,
        second=second.info,
        rows=rows.to_dict("records"),
        answer=text.changes(first, second, rows),
        metric=first.info.metric,
    )
    page.write_text(html, encoding="utf-8")
    return page


def _template(name: str) -> jinja2.Template:
    import jinja2

    from analysis import text

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": text.number, "short": text.short, "plain": text.plain}
    return environment.get_template(name)


def render(
    table: StudyTable,
    found: Findings,
    images: Mapping[str, str],
    annotations: Mapping[str, Sequence[tuple[float, float, str]]],
) -> str:
    """The page; `images` are base64 PNGs and `annotations` those of `plots.annotations`, by file stem."""
    from analysis import compare, text

    question, _, notes = table.info.question.strip().partition("\n")
    counts = found.outcomes
    if not counts["superseded"].any():
        counts = counts.drop(columns="superseded")
    times = table.trials["start_time"].dropna()
    factor = compare.size_factor(table.info.factors) or ""
    kind = compare.memory_kind(table.trials)
    return _template("report.html.j2").render(
        info=table.info,
        metric=table.info.metric,
        question=question or table.info.name,
        notes=notes.strip(),
        answer=text.answer(table, found),
        warnings=text.warnings(table, found),
        methods=text.methods(table, found),
        images=images,
        annotations=annotations,
        many=len(found.summary) > MANY_ROWS,
        n_repeats=text.span(found.summary.loc[found.summary["n"] > 0, "n"]),
        n_pairs=text.span(found.differences["n"]),
        n_trials=text.span(found.budget.groupby("cell")["trials"].max()),
        summary=found.summary.to_dict("records"),
        cold=bool(found.summary["marginal_seconds_median"].notna().any()),
        forecast=bool(found.summary["forecast_mib"].notna().any()) and "forecast" not in kind,
        memory_kind=kind,
        examples={row["cell"]: row for row in found.examples.to_dict("records")},
        fronts={row["cell"]: row for row in found.fronts.to_dict("records")},
        censored=found.censored.to_dict("records"),
        ranks=found.ranks.to_dict("records"),
        similarity=_similarity(found.similarity),
        differences=found.differences.to_dict("records"),
        rivals=found.rivals.to_dict("records"),
        shifted={(row["cell"], row["test_set"]): row for row in found.shifted.to_dict("records")},
        test_sets=list(found.shifted["test_set"].unique()),
        losses=found.losses.to_dict("records"),
        factor=factor,
        crossings=[
            row
            | {
                "interval": text.crossing_interval(row),
                "sentence": text.crossing(row, factor),
            }
            for row in found.crossings.to_dict("records")
        ],
        chosen=found.chosen.to_dict("records"),
        tuned_parameters=text.tuned_parameters(found.chosen),
        rates=found.rates.to_dict("records"),
        outcomes=counts.to_dict("records"),
        failures=found.failures.head(SHOWN_FAILURES).to_dict("records"),
        more_failures=max(0, len(found.failures) - SHOWN_FAILURES),
        parameters=text.condition_rows(table.trials, ("param.", "prefix")),
        environment=text.condition_rows(table.trials, ("device", "threads", "env.")),
        runs=len(table.trials),
        period=f"{times.min():%Y-%m-%d %H:%M} to {times.max():%Y-%m-%d %H:%M} UTC"
        if len(times)
        else "",
        viewer=viewer_command(table.tracking_uri) if table.tracking_uri else "",
        run_link=run_link(table),
    )


def _similarity(known: Similarity) -> dict[str, object]:
    """What the page shows of the similarity effect: its tables as rows, and two of them put otherwise."""
    from analysis import compare, text

    shown: dict[str, object] = {
        k: v.to_dict("records") if hasattr(v, "to_dict") else v for k, v in vars(known).items()
    }
    shown |= {"interaction": "", "shares": ""}
    if len(known.interactions):
        rows = compare.interaction_verdicts(known.interactions)
        shown |= {
            "interactions": rows.to_dict("records"),
            "interaction": text.describe_interactions(rows),
        }
    if len(known.variance):
        rows = compare.variance_table(known.variance)
        shown |= {"variance": rows.to_dict("records"), "shares": text.describe_variance(rows)}
    return shown


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="python -m analysis.report", description="Report of one study, as a page of its own."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--study", metavar="NAME", help="study (MLflow experiment) name")
    what.add_argument("--compare", nargs=2, metavar="NAME", help="two studies, side by side")
    what.add_argument(
        "--table",
        type=Path,
        metavar="FILE",
        help="trials made elsewhere: .csv, .tsv (.gz), .parquet",
    )
    parser.add_argument(
        "--mapping",
        type=Path,
        metavar="FILE",
        help="which column is what (.toml, .json), for --table",
    )
    parser.add_argument(
        "--measures",
        type=Path,
        metavar="FILE",
        help="table with columns source, target and measures of their similarity, more meaning more similar",
    )
    parser.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow store (default: the database under ./mlruns)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report"), metavar="FOLDER", help="default: %(default)s"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (2 for bad input)."""
    return run_command(lambda: run(parse(arguments)))


def read(
    study: str | None, table: Path | None, mapping: Path | None, uri: str | None
) -> StudyTable:
    """A study by its name, or a table by its file and mapping.

    Raises:
        UserError: if it cannot be read.
    """
    if table is None:
        from analysis.load import load_study

        assert study is not None
        return load_study(study, uri)
    from analysis.external import load_table
    from analysis.mapping import read_mapping

    if mapping is None:
        raise UserError("--table needs --mapping FILE, which says what its columns are")
    return load_table(table, read_mapping(mapping))


def run(options: argparse.Namespace) -> int:
    """Read, write, say where.

    Raises:
        UserError: if the study cannot be read or the report not be written.
    """
    try:
        if options.compare:
            tables = [read(name, None, None, options.tracking_uri) for name in options.compare]
            page, table = build_comparison(tables[0], tables[1], options.out), tables[0]
        else:
            measures = None
            if options.measures:
                from analysis.external import load_measures

                measures = load_measures(options.measures)
            table = read(options.study, options.table, options.mapping, options.tracking_uri)
            page = build(table, options.out, measures)
    except OSError as error:
        raise UserError(f"cannot write the report to {options.out}: {error}") from error
    print(f"report: {page.resolve()}")
    if table.tracking_uri and not options.compare:
        from analysis.publish import publish

        if parent := publish(table.info.name, table.tracking_uri, [page]):
            print(f"        also an artifact of run {parent} in MLflow")
    if table.tracking_uri:
        print(f"runs:   {viewer_command(table.tracking_uri, program('mlflow'))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
