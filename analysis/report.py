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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.spec import SAFE_NAME, UserError, without_password

if TYPE_CHECKING:  # imported where used: --help must not wait for them
    import pandas as pd
    from matplotlib.figure import Figure

    from analysis.load import StudyTable

SETTLED = ["complete", "pruned", "diverged", "oom", "timeout", "audit_failed", "crashed"]


@dataclass(frozen=True)
class Findings:
    """Every table of the report, in the columns that `analysis.compare` documents."""

    summary: pd.DataFrame
    differences: pd.DataFrame
    rivals: pd.DataFrame
    chosen: pd.DataFrame
    outcomes: pd.DataFrame
    budget: pd.DataFrame
    curves: pd.DataFrame


def find(table: StudyTable) -> Findings:
    """Everything that is compared, for the cells that the study declares."""
    from analysis import compare

    factors = table.info.factors
    trials = table.trials[table.trials["cell"].isin(compare.cells(factors)["cell"])]
    summary = compare.summary(trials, factors)
    return Findings(
        summary=summary,
        differences=compare.paired_differences(trials, factors, table.info.baseline),
        rivals=compare.against_best(trials, summary),
        chosen=compare.chosen(trials),
        outcomes=compare.outcomes(table.trials, factors),
        budget=compare.budget_curve(trials),
        curves=compare.learning_curves(trials, table.epochs),
    )


def answer(table: StudyTable, found: Findings) -> list[str]:
    """The finding in words and numbers, its uncertainty and its price; one string per paragraph."""
    scored = found.summary.dropna(subset="mean").sort_values("mean", ascending=False, kind="stable")
    if scored.empty:
        return _untested_answer(table, found)
    best = scored.iloc[0]
    among = f" among {len(scored)} cells" if len(scored) > 1 else ""
    interval = (
        f"95% interval {100 * best['low']:.1f} to {100 * best['high']:.1f}, {best['n']} seeds"
        if best["n"] > 1
        else "one seed: no interval"
    )
    text = [
        f"“{best['cell']}” has the highest mean test accuracy{among}: "
        f"{100 * best['mean']:.1f}% ({interval})."
    ]
    if found.rivals.empty:
        text.append("No other cell has a test score, so there is nothing to compare it with.")
    else:
        text.append(f"Against the runner-up: {found.rivals.iloc[0]['sentence']}")
        equals = found.rivals.loc[found.rivals["verdict"] == "open", "reference"]
        if len(equals) > 1:
            names = ", ".join(f"“{name}”" for name in equals)
            text.append(f"Cells that can't be told apart from it: {names}.")
    versus = found.differences[found.differences["cell"] == best["cell"]]
    if len(versus) and versus.iloc[0]["reference"] != _runner_up(found):
        text.append(f"Against the baseline: {versus.iloc[0]['sentence']}")
    elif best["cell"] in set(found.differences["reference"]):
        text.append("It is itself the baseline: no declared alternative has a higher mean.")
    return [*text, *_price(best, scored, found)]


def _runner_up(found: Findings) -> str:
    return "" if found.rivals.empty else str(found.rivals.iloc[0]["reference"])


def _price(best: pd.Series, scored: pd.DataFrame, found: Findings) -> list[str]:
    """What the best cell costs, and which cheaper one can't be told apart from it."""
    costs = _costs(best)
    if not costs:
        return ["What it costs was not measured."]
    text = f"It costs {costs} (median of {best['n']} repeats)."
    equal = found.rivals.loc[found.rivals["verdict"] == "open", "reference"]
    cheap = scored[scored["cell"].isin(equal)].dropna(subset="train_seconds_median")
    cheap = cheap[cheap["train_seconds_median"] < best["train_seconds_median"]]
    if len(cheap):
        other = cheap.loc[cheap["train_seconds_median"].idxmin()]
        text += f" “{other['cell']}”, not told apart from it in accuracy, costs {_costs(other)}."
    return [text]


def _costs(row: pd.Series) -> str:
    parts = [
        f"{_short(row[column])} {unit}"
        for column, unit in (
            ("train_seconds_median", "s of training"),
            ("peak_memory_mib_median", "MiB of peak memory"),
        )
        if row[column] == row[column]
    ]
    return " and ".join(parts)


def _untested_answer(table: StudyTable, found: Findings) -> list[str]:
    """What can be said when no repeat has a test score."""
    tuned = found.summary.dropna(subset="val_accuracy").sort_values("val_accuracy", ascending=False)
    counts = table.trials["outcome"].value_counts()
    if tuned.empty:
        seen = ", ".join(f"{n} {outcome}" for outcome, n in counts.items()) or "no runs at all"
        return [f"There is no answer yet: no trial was completed and scored ({seen})."]
    why = (
        "The study asked for no repeats"
        if table.info.repeats == 0
        else f"None of the {table.info.repeats} repeats per cell has a test score yet"
    )
    best = tuned.iloc[0]
    return [
        f"{why}, so nothing was scored on test and no cell can be called better than another.",
        f"The highest validation accuracy in tuning was that of “{best['cell']}”: "
        f"{100 * best['val_accuracy']:.1f}%, the best of {best['tuned']} trials. A best-of-many "
        f"validation score is optimistic and has no interval.",
    ]


def warnings(table: StudyTable, found: Findings) -> list[str]:
    """What a reader must know before believing the answer; empty when nothing is wrong."""
    return [*_missing_work(table, found), *_mixed_conditions(table), *_doubtful_runs(table, found)]


def _missing_work(table: StudyTable, found: Findings) -> list[str]:
    """Runs that have not ended, tuning trials and repeats that were asked for and are not there."""
    trials, info, text = table.trials, table.info, []
    open_runs = int((trials["outcome"] == "unfinished").sum())
    if open_runs:
        text.append(f"Unfinished: {open_runs} runs have not ended.")
    settled = trials[(trials["phase"] == "tune") & trials["outcome"].isin(SETTLED)]
    done = settled.groupby("cell")["index"].nunique()
    for phase, asked, counts in (
        (
            "tuning trials",
            info.trials,
            {cell: int(done.get(cell, 0)) for cell in found.summary["cell"]},
        ),
        (
            "scored repeats",
            info.repeats,
            dict(zip(found.summary["cell"], found.summary["n"], strict=True)),
        ),
    ):
        short = [f"“{cell}” {n} of {asked}" for cell, n in counts.items() if n < asked]
        if len(short) > 2 and len(short) == len(counts) and len({*counts.values()}) == 1:
            short = [f"every cell {next(iter(counts.values()))} of {asked}"]
        if short:
            text.append(f"Fewer {phase} than asked for: {'; '.join(short)}.")
    return text


def _mixed_conditions(table: StudyTable) -> list[str]:
    """Conditions that differ between the runs that are compared."""
    runs = table.trials[(table.trials["outcome"] == "complete") & ~table.trials["superseded"]]
    text = []
    for column, name in (("device", "devices"), ("threads", "thread counts")):
        values = sorted(runs[column].dropna().astype(str).unique())
        if len(values) > 1:
            text.append(f"Mixed {name} ({', '.join(values)}): times and memory are not comparable.")
    mixed = [c for c in runs.columns if c.startswith("env.") and runs[c].nunique() > 1]
    if mixed:
        names = ", ".join(c.removeprefix("env.") for c in mixed)
        text.append(f"The environment changed between runs: {names} (see Environment).")
    if "env.dirty" in runs and runs["env.dirty"].str.lower().isin(["true", "1", "yes"]).any():
        text.append("Some runs used uncommitted code: their revision does not tell all of it.")
    return text


def _doubtful_runs(table: StudyTable, found: Findings) -> list[str]:
    """Cells without a result, strays, unequal seeds, scores that the predictions do not bear out."""
    from analysis import compare

    text = []
    trials = table.trials
    dead = found.summary.loc[(found.summary["tuned"] == 0) & (found.summary["failed"] > 0), "cell"]
    for cell in dead:
        counts = trials.loc[trials["cell"] == cell, "outcome"].value_counts()
        seen = ", ".join(f"{n} {outcome}" for outcome, n in counts.items())
        text.append(f"No tuning trial of “{cell}” completed: {seen}.")
    strays = sorted(set(trials["cell"].dropna()) - set(found.summary["cell"]))
    if strays:
        text.append(f"Left out, no longer in the study file: {', '.join(strays)}.")
    repeats = compare.completed(trials, "repeat").dropna(subset="test_accuracy")
    if len({tuple(sorted(own)) for _, own in repeats.groupby("cell")["seed"]}) > 1:
        text.append("The cells were not repeated on the same seeds: only shared seeds are paired.")
    best = found.chosen.set_index("cell")["index"]
    stale = repeats[repeats["chosen"].notna() & (repeats["chosen"] != repeats["cell"].map(best))]
    if len(stale):
        names = ", ".join(f"“{cell}”" for cell in stale["cell"].unique())
        text.append(f"The repeats of {names} run another configuration than the best one tuned.")
    if wrong := compare.prediction_mismatches(trials, table.predictions):
        text.append(
            f"The kept predictions of {len(wrong)} repeats are missing or give another accuracy "
            f"than the one recorded: {', '.join(wrong[:5])}{' …' * (len(wrong) > 5)}."
        )
    return text


def figures(table: StudyTable, found: Findings) -> dict[str, Figure]:
    """The figures that the data allow, by file stem; their captions stand in the page's template."""
    from analysis import compare, plots

    summary = found.summary
    trials = table.trials[table.trials["cell"].isin(summary["cell"])]
    style = plots.styles(list(summary["cell"]))
    tuned = compare.completed(trials, "tune")
    made = {}
    if summary["mean"].notna().any():
        made["accuracy"] = plots.accuracy(summary, compare.completed(trials, "repeat"), style)
    if found.differences["difference"].notna().any():
        made["differences"] = plots.differences(found.differences, style)
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


def _range(values: pd.Series) -> str:
    """Whole numbers in print: "8" or "5 to 8"."""
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    return str(low) if low == high else f"{low} to {high}"


def _number(value: float, form: str, scale: float = 1) -> str:
    """A number in print; – for one that was not measured."""
    return "–" if value != value else format(scale * value, form)


def _short(value: float) -> str:
    """A number in print with three significant digits or all before the point; – if missing."""
    return _number(value, ".0f" if value >= 1000 else ".3g")


def _plain(value: Any) -> str:
    """A parameter in print."""
    return _short(value) if isinstance(value, float) else str(value)


def tuned_parameters(chosen: pd.DataFrame) -> list[str]:
    """The columns in which the chosen configurations differ, or the learning rate if they do not."""
    names = [c for c in chosen.columns if c.startswith("param.") and c != "param.seed"]
    differ = [c for c in names if chosen[c].astype(str).nunique() > 1]
    return differ or [c for c in names if c == "param.lr"]


def condition_rows(trials: pd.DataFrame, prefixes: tuple[str, ...]) -> list[tuple[str, str]]:
    """Every column that starts with one of `prefixes`, with its values (a range when many)."""
    rows = []
    for column in (c for c in trials.columns if c.startswith(prefixes)):
        values = trials[column].dropna()
        counts = values.value_counts()
        name = column.partition(".")[2] or column
        if 1 <= len(counts) <= 6:
            many = len(counts) > 1
            shown = [_plain(v) + (f" ({k} runs)" if many else "") for v, k in counts.items()]
            rows.append((name, ", ".join(shown)))
        elif len(counts):
            span = f"{_plain(values.min())} to {_plain(values.max())}"
            rows.append((name, f"{len(counts)} values, {span}"))
    return rows


def viewer_command(tracking_uri: str) -> str:
    """What to type, or where to go, to look at the runs in MLflow; never shows a password."""

    uri = without_password(tracking_uri)
    if uri.startswith(("http://", "https://")):
        return f"open {uri} in a browser"
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)} --host 127.0.0.1 --workers 1"


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
    if not SAFE_NAME.fullmatch(table.info.name) or not table.info.name.strip("."):
        raise UserError(f"study name {table.info.name!r} cannot be used as a folder name")
    folder = output / table.info.name
    for part in ("figures", "tables"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for stale in (*folder.glob("figures/*.png"), *folder.glob("tables/*.csv")):
        stale.unlink()
    found = find(table)
    images = {}
    for name, figure in figures(table, found).items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        (folder / "figures" / f"{name}.png").write_bytes(buffer.getvalue())
        images[name] = base64.b64encode(buffer.getvalue()).decode()
    for name, frame in (*vars(found).items(), ("trials", table.trials)):
        frame.to_csv(folder / "tables" / f"{name}.csv", index=False)
    page = folder / "index.html"
    page.write_text(render(table, found, images), encoding="utf-8")
    return page


def render(table: StudyTable, found: Findings, images: Mapping[str, str]) -> str:
    """The page as text; `images` are base64 PNGs by file stem."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "short": _short, "plain": _plain}
    question, _, notes = table.info.question.strip().partition("\n")
    counts = found.outcomes
    if not counts["superseded"].any():
        counts = counts.drop(columns="superseded")
    times = table.trials["start_time"].dropna()
    period = (
        f"{times.min():%Y-%m-%d %H:%M} to {times.max():%Y-%m-%d %H:%M} UTC" if len(times) else ""
    )
    scored = found.summary.loc[found.summary["n"] > 0, "n"]
    return environment.get_template("report.html.j2").render(
        info=table.info,
        question=question or table.info.name,
        notes=notes.strip(),
        answer=answer(table, found),
        warnings=warnings(table, found),
        images=images,
        n_repeats=_range(scored),
        n_pairs=_range(found.differences["n"]),
        n_trials=_range(found.budget.groupby("cell")["trials"].max()),
        summary=found.summary.to_dict("records"),
        differences=found.differences.to_dict("records"),
        rivals=found.rivals.to_dict("records"),
        chosen=found.chosen.to_dict("records"),
        tuned_parameters=tuned_parameters(found.chosen),
        outcomes=counts.to_dict("records"),
        parameters=condition_rows(table.trials, ("param.",)),
        environment=condition_rows(table.trials, ("device", "threads", "env.")),
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
    try:
        from analysis.load import load_study

        table = load_study(options.study, options.tracking_uri)
        page = build(table, options.output)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"report: {page.resolve()}")
    print(f"runs:   {viewer_command(table.tracking_uri)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
