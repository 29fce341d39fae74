"""Conclusions on measures of similarity: what was shown for each of them, and what was not.

    python -c "import pandas as pd; from analysis.compare.slopes import slopes; \\
               from analysis.compare.verdicts import *; \\
               print(verdicts(slopes(pd.read_csv('responses.csv'), ['logme'])))"
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

ALPHA = 0.05
TESTS = ("crossed", "fixed", "shuffled")
"""Models that do not take pairs for independent."""


def verdicts(slopes: pd.DataFrame, means: pd.DataFrame | None = None) -> pd.DataFrame:
    """What was shown, and what was not, for each measure and strategy.

    Args:
        slopes: from `slopes`.
        means: from `agreement.mean_agreement`; says how far the measure ranks better than the static ranking.
            It is about all strategies together, so it is not used if there are several.

    Returns:
        strategy, measure, verdict and sentence. The verdict is "similarity" (all three tests significant at
        .05 after Holm's adjustment, with the same sign), "source" (the crossed model and the shuffles, but
        not within sources), "open" (anything less) or "untested".
    """
    known = {} if means is None else {row["measure"]: row for row in means.to_dict("records")}
    family = len(slopes[["strategy", "measure"]].drop_duplicates())
    rows = []
    for (strategy, measure), group in slopes.groupby(["strategy", "measure"], sort=False):
        own = group.set_index("model").to_dict("index")
        verdict = _verdict(own)
        sentence = _sentence(str(measure), verdict, own, family)
        if strategy:
            sentence = f"Under “{strategy}”: {sentence[0].lower()}{sentence[1:]}"
        elif measure in known:
            sentence += _against_static(known[str(measure)])
        head = {"strategy": strategy, "measure": measure}
        rows.append({**head, "verdict": verdict, "sentence": sentence})
    return pd.DataFrame(rows, columns=["strategy", "measure", "verdict", "sentence"])


def interaction_verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """Whether each slope was shown to differ between strategies, or to change with the size.

    Args:
        table: from `slopes.interactions`.

    Returns:
        One row per term and measure: term, measure, n, slope, low, high (of the crossed model), crossed,
            fixed, shuffled (p after Holm's adjustment) and verdict, as in `verdicts`.
    """
    rows = []
    for (term, measure), group in table.groupby(["term", "measure"], sort=False):
        own = group.set_index("model").to_dict("index")
        row = {"term": term, "measure": measure, "n": own["crossed"]["n"]}
        row |= {k: own["crossed"][k] for k in ("slope", "low", "high")}
        row |= {model: own[model]["p_holm"] for model in TESTS}
        rows.append(row | {"verdict": _verdict(own)})
    columns = ["term", "measure", "n", "slope", "low", "high", *TESTS, "verdict"]
    return pd.DataFrame(rows, columns=columns)


def _verdict(own: Mapping[Hashable, Mapping[Hashable, Any]]) -> str:
    if any(math.isnan(own[model]["p"]) for model in TESTS):
        return "untested"
    low = {model for model in TESTS if own[model]["p_holm"] <= ALPHA}
    if len(low) == 3 and len({own[model]["slope"] > 0 for model in TESTS}) == 1:
        return "similarity"
    same = (own["crossed"]["slope"] > 0) == (own["shuffled"]["slope"] > 0)
    return "source" if low == {"crossed", "shuffled"} and same else "open"


def _sentence(
    measure: str, verdict: str, own: Mapping[Hashable, Mapping[Hashable, Any]], family: int
) -> str:
    """One measure as a sentence; `family` is the number of tests that Holm adjusts for."""
    naive, crossed, fixed = own["naive"], own["crossed"], own["fixed"]
    shape = f"{naive['n']} pairs of {naive['sources']} sources and {naive['targets']} targets"
    if verdict == "untested":
        why = next((row["note"] for row in own.values() if row["note"]), "a fit failed")
        return f"No conclusion about {measure} ({shape}): {why}."
    way = "worse" if crossed["slope"] < 0 and verdict != "open" else "better"
    claim = f"that sources which {measure} ranks higher transfer {way}"
    slope = f"{crossed['slope']:+.2g} logits per standard deviation"
    interval = f"{slope}, {crossed['low']:+.2g} to {crossed['high']:+.2g}"
    evidence = (
        f"with crossed random effects p = {crossed['p_holm']:.2g} ({interval}), with fixed "
        f"effects p = {fixed['p_holm']:.2g}, by permutation of the sources p = "
        f"{own['shuffled']['p_holm']:.2g}{f' (Holm over {family} tests)' * (family > 1)}"
    )
    if verdict == "similarity":
        return (
            f"It was shown {claim}, for a given target and in addition to the source's own "
            f"quality ({shape}): {evidence}."
        )
    if verdict == "source":
        return (
            f"It was shown {claim} ({shape}), but not that this depends on similarity to the "
            "target: the same sources may be good for all targets. "
            f"{evidence[0].upper()}{evidence[1:]}."
        )
    trap = ""
    if naive["p_holm"] <= ALPHA:
        trap = (
            f" Least squares alone gives p = {naive['p_holm']:.1g}, because it treats the "
            "pairs as independent."
        )
    if len({row["slope"] > 0 for row in own.values()}) > 1:
        trap += " The slopes of the models differ in sign."
    return f"It was not shown {claim} ({shape}): {evidence}.{trap}"


def _against_static(row: Mapping[Hashable, Any]) -> str:
    if math.isnan(row["lead"]):
        return ""
    if row["lead_low"] > 0:
        how = "it ranks the sources better than"
    elif row["lead_high"] < 0:
        how = "it ranks the sources worse than"
    else:
        how = "its ranking is not significantly different from"
    return (
        f" Over {row['targets']} targets, {how} the ranking that ignores the target (mean "
        f"weighted tau {row['static'] + row['lead']:.2f}, against {row['static']:.2f})."
    )
