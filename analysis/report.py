"""What did a study find, and how sure is it? One page that needs no network, figures and tables.

    python -m analysis.report --study freeze_depth

Writes report/<study>/index.html, figures/*.png and tables/*.csv.
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

from harness.spec import SAFE_NAME, UserError, program, run_command, without_password

if TYPE_CHECKING:  # imported where used: --help must not wait for them
    from matplotlib.figure import Figure

    from analysis.compare import Findings
    from analysis.load import StudyTable


def figures(table: StudyTable, found: Findings) -> dict[str, Figure]:
    """The figures that the data allow, by file stem; their captions stand in the page's template."""
    from analysis import compare, plots

    summary = found.summary
    trials = table.trials[table.trials["cell"].isin(summary["cell"])]
    factor = compare.size_factor(table.info.factors)
    lines = compare.size_lines(table.info.factors)
    several = lines["line"].nunique() > 1
    groups = dict(zip(lines["cell"], lines["line"], strict=True)) if several else {}
    style = plots.styles(list(summary["cell"]), groups)
    tuned = compare.completed(trials, "tune")
    made = {}
    if factor and found.by_size["size"].nunique() > 1:
        scores = compare.completed(trials, "repeat").merge(lines, on="cell")
        look = plots.styles(list(lines["line"].unique()))
        made["by_size"] = plots.by_size(found.by_size, scores, factor, look)
    if summary["mean"].notna().any():
        made["accuracy"] = plots.accuracy(summary, compare.completed(trials, "repeat"), style)
    if found.differences["difference"].notna().any():
        made["differences"] = plots.differences(found.differences, style)
    if len(found.shifted):
        made["shifted"] = plots.shifted(found.shifted, style)
    place = "process" if "rss" in compare.memory_column(trials) else "accelerator, allocated"
    for cost, front, label in (
        ("train_seconds", "time_front", "Training time of one repeat (s)"),
        ("peak_memory_mib", "memory_front", f"Peak memory, {place} (MiB)"),
    ):
        if (summary["mean"].notna() & (summary[f"{cost}_min"] > 0)).any():
            made[cost] = plots.cost(summary, cost, front, label, style)
    if len(found.curves):
        made["learning_curves"] = plots.learning_curves(found.curves, style)
    if len(found.budget) and table.info.sampler != "tpe":
        made["budget"] = plots.budget(found.budget, style)
    if "param.lr" in tuned and len(tuned.dropna(subset=["param.lr", "val_accuracy"])):
        made["learning_rates"] = plots.rates(tuned, style)
    return made


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


def build(table: StudyTable, output: Path) -> Path:
    """Write the report of one study.

    Args:
        table: the study as read.
        output: folder that gets a folder named after the study.

    Returns:
        The path of index.html. Figures and tables of an earlier report of the study are replaced.

    Raises:
        UserError: if the study's name cannot be a folder's.
        OSError: if the folder cannot be written.
    """
    from analysis import compare

    if not SAFE_NAME.fullmatch(table.info.name) or not table.info.name.strip("."):
        raise UserError(f"study name {table.info.name!r} cannot be used as a folder name")
    folder = output / table.info.name
    for part in ("figures", "tables"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for stale in (*folder.glob("figures/*.png"), *folder.glob("tables/*.csv")):
        stale.unlink()
    found = compare.find(table)
    images = {}
    for name, figure in figures(table, found).items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        (folder / "figures" / f"{name}.png").write_bytes(buffer.getvalue())
        images[name] = base64.b64encode(buffer.getvalue()).decode()
    for name, frame in (*vars(found).items(), ("trials", table.trials)):
        if len(frame):
            frame.to_csv(folder / "tables" / f"{name}.csv", index=False)
    page = folder / "index.html"
    page.write_text(render(table, found, images), encoding="utf-8")
    return page


def render(table: StudyTable, found: Findings, images: Mapping[str, str]) -> str:
    """The page as text; `images` are base64 PNGs by file stem."""
    import jinja2

    from analysis import compare, words

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": words.number, "short": words.short, "plain": words.plain}
    question, _, notes = table.info.question.strip().partition("\n")
    counts = found.outcomes
    if not counts["superseded"].any():
        counts = counts.drop(columns="superseded")
    times = table.trials["start_time"].dropna()
    period = (
        f"{times.min():%Y-%m-%d %H:%M} to {times.max():%Y-%m-%d %H:%M} UTC" if len(times) else ""
    )
    factor = compare.size_factor(table.info.factors) or ""
    return environment.get_template("report.html.j2").render(
        info=table.info,
        question=question or table.info.name,
        notes=notes.strip(),
        answer=words.answer(table, found),
        warnings=words.warnings(table, found),
        images=images,
        n_repeats=words.span(found.summary.loc[found.summary["n"] > 0, "n"]),
        n_pairs=words.span(found.differences["n"]),
        n_trials=words.span(found.budget.groupby("cell")["trials"].max()),
        summary=found.summary.to_dict("records"),
        differences=found.differences.to_dict("records"),
        rivals=found.rivals.to_dict("records"),
        shifted={(row["cell"], row["test_set"]): row for row in found.shifted.to_dict("records")},
        test_sets=list(found.shifted["test_set"].unique()),
        losses=found.losses.to_dict("records"),
        factor=factor,
        crossings=[
            row
            | {
                "interval": words.crossing_interval(row),
                "sentence": words.crossing(row, factor),
            }
            for row in found.crossings.to_dict("records")
        ],
        chosen=found.chosen.to_dict("records"),
        tuned_parameters=words.tuned_parameters(found.chosen),
        outcomes=counts.to_dict("records"),
        parameters=words.condition_rows(table.trials, ("param.",)),
        environment=words.condition_rows(table.trials, ("device", "threads", "env.")),
        runs=len(table.trials),
        period=period,
        viewer=viewer_command(table.tracking_uri),
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report", description="Report of one study, as a page of its own."
    )
    parser.add_argument(
        "--study", required=True, metavar="NAME", help="study (MLflow experiment) name"
    )
    parser.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow store (default: the database under ./mlruns)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("report"), metavar="FOLDER", help="default: %(default)s"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (2 for bad input)."""
    options = parse(arguments)
    return run_command(lambda: run(options))


def run(options: argparse.Namespace) -> int:
    """Read, write, say where.

    Raises:
        UserError: if the study cannot be read or the report not be written.
    """
    from analysis.load import load_study

    table = load_study(options.study, options.tracking_uri)
    try:
        page = build(table, options.output)
    except OSError as error:
        raise UserError(f"cannot write the report to {options.output}: {error}") from error
    print(f"report: {page.resolve()}")
    print(f"runs:   {viewer_command(table.tracking_uri, program('mlflow'))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
