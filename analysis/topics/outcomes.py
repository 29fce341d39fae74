"""Outcomes of the runs."""

from __future__ import annotations

import pandas as pd
from markupsafe import Markup

from analysis import compare
from analysis.compare import Findings
from analysis.topics.section import Columns, Section, Table, run_links

SHOWN = 100
"""Failures that the page lists; the table has all of them."""
ENDED_WELL = ("complete", "pruned", "unfinished")


def section(found: Findings) -> Section:
    """Number of outcomes by cell and phase, and all runs that failed."""
    trials = compare.recorded(found.table.trials)
    counts, bad = compare.outcomes(trials, found.info), failures(trials)
    tables = {"outcomes": counts, "failures": bad}
    if counts.empty:
        return Section("How the runs ended", ["No runs were recorded."], tables=tables)
    if not counts["superseded"].any():
        counts = counts.drop(columns="superseded")
    note = "One count per run. A killed run that was run again is counted here, but not compared."
    if "superseded" in counts:
        note += " Superseded: repeats of configurations that are not, or no longer, those of their cells."
    parts: list[Table | str] = [Table(_counts(counts), note=note)]
    if len(bad):
        parts.append(_failures(found, bad.head(SHOWN)))
    if len(bad) > SHOWN:
        parts.append(f"{len(bad) - SHOWN} more in tables/failures.csv.")
    return Section("How the runs ended", parts, tables=tables)


def _counts(counts: pd.DataFrame) -> Columns:
    """The counts, with failures highlighted."""
    fine = {"cell", "phase", "complete", "pruned", "superseded"}
    loud = Markup('<b class="bad">{}</b>')
    return {
        str(name): [loud.format(v) if v and name not in fine else v for v in counts[name]]
        for name in counts
    }


def _failures(found: Findings, rows: pd.DataFrame) -> Table:
    return Table(
        {
            "Cell": list(rows["cell"]),
            "Phase": list(rows["phase"]),
            "Trial": run_links(found, rows["run_id"], rows["index"]),
            "Outcome": list(rows["outcome"]),
            "Reason": ["–" if pd.isna(reason) else reason for reason in rows["reason"]],
        },
        "Failed runs",
        long_text=True,
    )


def failures(trials: pd.DataFrame) -> pd.DataFrame:
    """All runs that failed, without superseded ones: cell, phase, index, seed, outcome, reason, run_id, in
    this order."""
    bad = trials[~trials["outcome"].isin(ENDED_WELL) & ~trials["superseded"]]
    columns = ["cell", "phase", "index", "seed", "outcome", "reason", "run_id"]
    return bad[columns].sort_values(columns[:4], kind="stable", ignore_index=True)
