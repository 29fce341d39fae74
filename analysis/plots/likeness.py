"""Do measures of likeness order the sources as they turn out?

    python -c "from analysis import compare, load, plots; f = compare.find(load.load_study('sources')); \\
               plots.agreement(f.similarity.agreement, f.similarity.means).savefig('a.png')"
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.plots.canvas import BACKGROUND, INK, canvas, name_rows


def agreement(table: pd.DataFrame, means: pd.DataFrame) -> Figure:
    """Weighted tau of each measure: a small mark per target, the mean over targets and its interval; the
    band is where 95% of shuffled rankings of one target lie."""
    means = means.sort_values("tau_w", ascending=False, ignore_index=True)
    figure, (axes,) = canvas(1.2 + 0.42 * len(means))
    reach = 1.96 * float(table["null_sd"].mean())
    axes.axvspan(-reach, reach, color="#eeeeee", zorder=0)
    axes.axvline(0, color=INK, lw=1)
    for i, row in enumerate(means.to_dict("records")):
        own = table.loc[table["measure"] == row["measure"], "tau_w"].dropna()
        axes.plot(own, [i + 0.2] * len(own), ls="", marker="o", ms=4, mew=0, color=BACKGROUND.color)
        axes.plot([row["low"], row["high"]], [i - 0.1] * 2, color=INK, lw=2.5)
        axes.plot(row["tau_w"], i - 0.1, marker="o", ms=8, color=INK, mec="white")
    name_rows(axes, list(means["measure"]))
    axes.set_xlabel("Weighted Kendall tau with the scores reached")
    return figure
