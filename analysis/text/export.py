"""The main table for a paper, in LaTeX and Markdown.

    python -c "from analysis import compare, load_study, text; t = load_study('freeze_depth'); \\
               print(text.markdown(text.main_table(compare.find(t))))"
"""

from __future__ import annotations

import pandas as pd

from analysis import compare
from analysis.compare import Findings
from analysis.text.numbers import number, short


def main_table(found: Findings) -> pd.DataFrame:
    """Cells with a test score as text: cell, score with interval, seeds and, if known, the difference from
    the baseline with simultaneous interval and p, training time and memory, in the units of the headings."""
    scored = found.summary[found.summary["n"] > 0]
    shown = pd.DataFrame({"Cell": scored["cell"]})
    metric = found.info.metric
    shown[f"Test {metric} (%)"] = [
        number(row["mean"], ".1f", 100) + interval(row["low"], row["high"], ".1f", 100)
        for row in scored.to_dict("records")
    ]
    shown["Seeds"] = scored["n"].astype("str")
    if len(found.differences):
        against = {row["cell"]: row for row in found.differences.to_dict("records")}
        gaps = [against.get(cell) for cell in scored["cell"]]
        shown["Difference (points)"] = [
            ""
            if g is None
            else number(g["difference"], "+.1f") + interval(g["low"], g["high"], "+.1f")
            for g in gaps
        ]
        shown["p (adjusted)"] = ["" if g is None else number(g["p"], ".2g") for g in gaps]
    for column, head in (
        ("train_seconds_median", "Training (s)"),
        ("peak_memory_mib_median", f"Memory, {compare.memory_kind(found.trials)} (MiB)"),
    ):
        if scored[column].notna().any():
            shown[head] = [short(value) for value in scored[column]]
    return shown.reset_index(drop=True)


def interval(low: float, high: float, form: str, scale: float = 1) -> str:
    """ " [low, high]", or nothing where there is none."""
    return "" if low != low else f" [{number(low, form, scale)}, {number(high, form, scale)}]"


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table; pipes in cells are escaped."""
    rows = [[str(v).replace("|", "\\|") for v in row] for row in table.to_numpy().tolist()]
    head = [str(column).replace("|", "\\|") for column in table.columns]
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *rows))


def latex(table: pd.DataFrame, caption: str) -> str:
    """A booktabs table in a table environment; special characters are escaped."""
    special: dict[str, str | int | None] = {"–": "--"}
    special.update({c: "\\" + c for c in "&%$#_{}"})
    text = table.map(
        lambda v: str(v).replace("\\", r"\textbackslash ").translate(str.maketrans(special))
    )
    text.columns = [str(c).translate(str.maketrans(special)) for c in table.columns]
    made: str = text.to_latex(
        index=False, escape=False, column_format="l" + "r" * (len(text.columns) - 1),
        caption=caption.translate(str.maketrans(special)), position="t",
    )  # fmt: skip
    return made
