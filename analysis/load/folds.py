"""Configurations of a study with k-fold resampling, each of which was run once per fold."""

from __future__ import annotations

from statistics import fmean

import pandas as pd

from harness.core.errors import counted

SUMS = ("train_seconds", "marginal_seconds", "total_seconds")


def by_configuration(
    trials: pd.DataFrame, folds: int, derived: str
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The trials with one row of phase "tune" for each configuration, whose runs get the phase "fold".

    The row has the means of the scores over the complete folds of the configuration, the sums of the seconds,
    and the other values, such as run_id, of the first complete fold. A configuration is complete if no other
    one of its cell has more complete folds, as in `harness.search.record`; otherwise its outcome is that of a
    fold that failed, or "unfinished".

    Args:
        trials: as recorded: the index of a tuning run is configuration * folds + fold.
        folds: number of folds.
        derived: name of the column that is True for the new rows.

    Returns:
        The trials, and notes on configurations that were not eligible.
    """
    tune = trials["phase"] == "tune"
    runs = trials.assign(phase=trials["phase"].mask(tune, "fold"), **{derived: False})
    ran = trials[tune & ~trials["superseded"]]
    if ran.empty:
        return runs, ()
    # Of several attempts at a fold the complete one counts, else the last.
    ran = ran.assign(
        done=ran["outcome"] == "complete", index=ran["index"] // folds, slot=ran["index"]
    )
    ran = ran.sort_values(["done", "attempt"], kind="stable")
    ran = ran.drop_duplicates(["cell", "slot"], keep="last").sort_values("slot", kind="stable")
    complete = ran.groupby(["cell", "index"])["done"].transform("sum")
    eligible = (complete > 0) & (complete == complete.groupby(ran["cell"]).transform("max"))
    rows = [
        _configuration(own, bool(eligible[own.index[0]]), folds)
        for _, own in ran.groupby(["cell", "index"], sort=False)
    ]
    made = (
        pd.DataFrame(rows, columns=trials.columns).astype(trials.dtypes).assign(**{derived: True})
    )
    made["param.fold"] = None
    failed = int((~made["outcome"].isin(["complete", "unfinished"])).sum())
    note = (f"Not eligible: {counted(failed, 'configuration')} that failed on at least one fold.",)
    return pd.concat([made, runs], ignore_index=True), note * bool(failed)


def _configuration(own: pd.DataFrame, eligible: bool, folds: int) -> pd.Series:
    """The row of one configuration, from its runs."""
    complete = own[own["done"]]
    row = (complete if eligible else own[~own["done"]] if len(own) == folds else own).iloc[0].copy()
    known = complete if len(complete) else own
    for name in map(str, own):
        if name == "train_loss" or name.startswith("val_"):
            values = known[name].dropna().tolist()
            row[name] = fmean(values) if values else None  # as in harness.search.record
    for name in SUMS:
        if name in own:
            row[name] = own[name].sum(min_count=1)
    if not eligible and len(own) < folds:
        row["outcome"] = "unfinished"
    return row
