"""The effect of similarity in a study with the factors source and target.

    python -c "from analysis import compare, load; t = load.load_study('source_similarity'); \\
               print(*compare.similarity_effect(t).verdicts['sentence'], sep='\\n')"

Measures are those recorded with the study, or a table passed as an argument.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd

from analysis.compare.agreement import (
    STATIC,
    mean_agreement,
    rank_agreement,
    static_ranking,
)
from analysis.compare.factors import size_factor
from analysis.compare.responses import (
    CONDITIONS,
    gains,
    pair_gains,
    responses,
    standardised,
    with_scratch,
)
from analysis.compare.runs import completed
from analysis.compare.slopes import decisive_targets, interactions, slopes, variance_shares
from analysis.compare.verdicts import verdicts
from harness.core.errors import UserError

if TYPE_CHECKING:
    from analysis.load import StudyTable

SCRATCH = "scratch"
PAIR = ["source", "target"]
ALTERED = re.compile(r"^(?:shuffle|permute|random_labels)\(")
"""Pretraining data of a control: images or labels were made meaningless."""
KEYS = [*PAIR, "family"]
"""Columns of a table of measures that are not measures."""


@dataclass(frozen=True)
class Similarity:
    """Results on similarity of a study with the factors source and target; empty for other studies.

    Attributes:
        agreement, means: agreement of the measures, and of the static ranking, with the order of the sources
            (`agreement.rank_agreement`, `mean_agreement`).
        slopes, verdicts: from `slopes.slopes` and `verdicts.verdicts`, the latter with decisive (number of
            targets without one of which a shown effect is not shown); empty without measures.
        interactions: from `slopes.interactions`; empty with one strategy and one size.
        variance: from `slopes.variance_shares`, one row per measure.
        gains: gain over scratch in points by source, strategy and size, with control (whether the source was
            trained on altered data); empty if scratch is not compared.
        points: from `responses.pair_gains`, with control, measure (the one with the highest mean tau_w) and
            similarity (that measure in standard deviations within the target); empty without scratch or
            measures.
        blind: measures with the same value for all targets, for which slopes are not defined.
        note: explanation of what is missing, in sentences.
    """

    agreement: pd.DataFrame = field(default_factory=pd.DataFrame)
    means: pd.DataFrame = field(default_factory=pd.DataFrame)
    slopes: pd.DataFrame = field(default_factory=pd.DataFrame)
    verdicts: pd.DataFrame = field(default_factory=pd.DataFrame)
    interactions: pd.DataFrame = field(default_factory=pd.DataFrame)
    variance: pd.DataFrame = field(default_factory=pd.DataFrame)
    gains: pd.DataFrame = field(default_factory=pd.DataFrame)
    points: pd.DataFrame = field(default_factory=pd.DataFrame)
    blind: tuple[str, ...] = ()
    note: str = ""


def recorded_measures(table: StudyTable) -> pd.DataFrame | None:
    """The recorded measures: source, target and one column per measure, with signs such that higher means
    more similar. None if nothing was recorded.

    Raises:
        UserError: if a pair was measured with several backbones, so that its value is ambiguous.
    """
    long = table.measures.dropna(subset="value")
    if long.empty:
        return None
    if (double := long.duplicated([*PAIR, "measure"])).any():
        first = long[double].iloc[0]
        raise UserError(
            f"{first['source']} and {first['target']} were measured with several backbones"
        )
    turned = long.assign(value=long["value"].where(long["better"] != "lower", -long["value"]))
    order = list(long["measure"].unique())
    wide = turned.pivot(index=PAIR, columns="measure", values="value")[order]
    return wide.rename_axis(columns=None).reset_index()


def families(table: StudyTable, measures: pd.DataFrame | None) -> dict[str, str]:
    """The family of each source: the column family of the given measures, or else the data set that
    contributed most of its images. Only sources of the same family are exchangeable, because families differ
    in more than their similarity to the target."""
    if measures is not None and "family" in measures:
        return dict(zip(measures["source"], measures["family"].fillna(""), strict=True))
    known = table.measures.dropna(subset="source_data").drop_duplicates("source")
    return {
        row["source"]: family_of(row["source_data"])
        for row in known.to_dict("records")
        if row["source_data"]
    }


def family_of(data: str) -> str:
    """Name of the data set in an expression, such as "mnist5k" for "shuffle(4,mnist5k[classes=0-4])"; for a
    mixture, the data set with the larger share."""
    plain, number = re.sub(r"\[[^\]]*\]| ", "", data), r"\d*\.?\d+"
    while found := re.fullmatch(r"(\w+)\((.*)\)", plain):
        parts = re.split(r",(?![^(]*\))", found[2])
        sets = [part for part in parts if not re.fullmatch(number, part)] or parts
        less = found[1] == "mix" and re.fullmatch(number, parts[-1]) and float(parts[-1]) < 0.5
        plain = sets[-1] if less else sets[0]
    return plain


def controls(table: StudyTable) -> set[str]:
    """Sources that were trained on altered images or labels."""
    known = table.measures.dropna(subset="source_data")
    return set(known.loc[known["source_data"].str.contains(ALTERED.pattern), "source"])


def pair_scores(table: StudyTable, measures: pd.DataFrame | None = None) -> pd.DataFrame:
    """The compared repeats: source, target, seed, accuracy and, if known, examples (size of the test set),
    backbone, strategy, size and measures.

    A source whose runs all began from random weights is named SCRATCH. Rows whose source is the target itself
    are omitted, because they are not transfer.
    """
    factors = table.info.factors
    repeats = completed(table.trials, "repeat").dropna(subset="test_score")
    scores = repeats[[*PAIR, "seed"]].assign(accuracy=repeats["test_score"])
    if "param.source" in repeats:
        random = (repeats["param.source"] == SCRATCH).groupby(repeats["source"]).transform("all")
        scores["source"] = scores["source"].mask(random.astype(bool), SCRATCH)
    size = size_factor(factors)
    rest = [name for name in factors if name not in ("source", "target", size)]
    if rest:
        scores["strategy"] = repeats[rest].agg(" | ".join, axis="columns")
    if size:
        scores["size"] = repeats[size].astype(float)
    if "param.backbone" in repeats and "backbone" not in factors:
        scores["backbone"] = repeats["param.backbone"]
    if len(table.predictions):
        scores["examples"] = repeats["run_id"].map(table.predictions.groupby("run_id").size())
    if known := families(table, measures):
        scores["family"] = scores["source"].map(known).fillna("")
    if measures is not None:
        measures = measures.drop(columns="family", errors="ignore")
        scores = scores.merge(measures, on=PAIR, how="left", validate="many_to_one")
    return scores[scores["source"] != scores["target"]]


def similarity_effect(table: StudyTable, measures: pd.DataFrame | None = None) -> Similarity:
    """The effect of similarity, as far as it can be computed from the factors and the measures.

    Args:
        table: the study as loaded.
        measures: columns source, target, one per measure and optionally family (of the source); None uses
            those recorded with the study.

    Raises:
        UserError: if measures are given but the study lacks the factors source and target, or none of its
            pairs has measures.
    """
    given, notes = measures is not None, list[str]()
    if not set(PAIR) <= set(table.info.factors):
        if given:
            raise UserError("measures need a study with the factors source and target")
        return Similarity()
    if not given:
        try:
            measures = recorded_measures(table)
        except UserError as error:
            notes.append(f"Measures are not shown: {error}.")
    names = [] if measures is None else [str(c) for c in measures if c not in KEYS]
    scores = _comparable(pair_scores(table, measures), notes)
    names = [name for name in names if scores[name].notna().any()]
    if given and not names:
        raise UserError("the measures contain none of the study's pairs of source and target")
    runs = scores[scores["source"] != SCRATCH]
    altered, found = controls(table), dict[str, pd.DataFrame]()
    if len(runs) < len(scores):
        try:
            runs = with_scratch(scores)
            of_source = gains(runs, ["source", *(name for name in CONDITIONS if name in runs)])
            found["gains"] = of_source.assign(control=of_source["source"].isin(altered))
        except UserError as error:
            notes.append(f"Gains over scratch are not shown: {error}.")
    if runs["source"].nunique() < 3 or runs["target"].nunique() < 2:
        note = " ".join(notes or ["Rankings need 3 sources and 2 targets."])
        return Similarity(**found, blind=(), note=note)
    blind = tuple(n for n in names if (runs.groupby("source")[n].nunique() <= 1).all())
    pairs = runs.groupby(PAIR, sort=False, as_index=False)[["accuracy", *names]].mean()
    agreement = rank_agreement(static_ranking(pairs), [*names, STATIC])
    found |= {"agreement": agreement, "means": mean_agreement(agreement)}
    if seeing := [name for name in names if name not in blind]:
        found |= _effect(runs, seeing, found["means"], notes)
        if "gains" in found:
            means = found["means"][found["means"]["measure"].isin(seeing)]
            found["points"] = _points(runs, means, altered, table.info.folds)
    return Similarity(**found, blind=blind, note=" ".join(notes))


def _comparable(scores: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """The scores without sources of another architecture than that of the run from scratch, because their
    gain would also be an effect of the architecture."""
    if "backbone" not in scores or not (scratch := scores["source"] == SCRATCH).any():
        return scores
    other = ~scores["backbone"].isin(scores.loc[scratch, "backbone"])
    if other.any():
        names = ", ".join(scores.loc[other, "source"].unique())
        notes.append(
            "Omitted from all slopes, because their architecture is not that of the runs from "
            f"scratch: {names}."
        )
    return scores[~other]


def _effect(
    runs: pd.DataFrame, measures: Sequence[str], means: pd.DataFrame, notes: list[str]
) -> dict[str, pd.DataFrame]:
    """Slopes, verdicts, interactions and variance shares of measures that depend on the target."""
    try:
        answered = responses(runs)
        judged = slopes(answered, measures)
        found = {
            "slopes": judged,
            "verdicts": _with_targets(judged, means, answered),
            "interactions": interactions(answered, measures),
        }
    except UserError as error:
        notes.append(f"Slopes are not shown: {error}.")
        return {}
    shares = []
    for name in measures:
        try:
            shares.append(variance_shares(answered, name))
        except UserError as error:
            notes.append(f"{str(error)[:1].upper()}{str(error)[1:]}.")
    return found | {"variance": pd.DataFrame(shares)}


def _with_targets(found: pd.DataFrame, means: pd.DataFrame, answered: pd.DataFrame) -> pd.DataFrame:
    """The verdicts, with the number and names of targets without one of which a shown effect is not shown."""
    rows = verdicts(found, means)
    sentences, decisive = [], []
    for row in rows.to_dict("records"):
        sentence, own = row["sentence"], answered
        if row["strategy"]:
            own = answered[answered["strategy"] == row["strategy"]]
        few = decisive_targets(own, row["measure"]) if row["verdict"] == "similarity" else []
        if few:
            sentence += f" It depends on few targets: without {' or '.join(few)} it is not shown."
        sentences.append(sentence)
        decisive.append(len(few))
    return rows.assign(sentence=sentences, decisive=decisive)


def _points(runs: pd.DataFrame, means: pd.DataFrame, altered: set[str], folds: int) -> pd.DataFrame:
    """Gain and similarity of each pair; see Similarity.points."""
    means = means.dropna(subset="tau_w").sort_values("tau_w", kind="stable")
    if means.empty:
        return means
    measure = str(means["measure"].iloc[-1])
    pairs = runs.groupby(PAIR, sort=False, as_index=False)[[measure]].mean()
    z = standardised(pairs.assign(response=0.0), measure)[[*PAIR, "z"]]
    table = pair_gains(runs, folds).merge(z.rename(columns={"z": "similarity"}), on=PAIR)
    return table.assign(measure=measure, control=table["source"].isin(altered))
