"""Tables of trials of other programs, read into the same data frame as a study of this harness.

    python -c "from analysis.load.external import *; \\
               print(load_table('runs.csv', read_mapping('runs.toml')).trials)"

The file is CSV, TSV (both also as .gz) or Parquet, with one row per run. `analysis.load.mapping` says what
the columns mean. Assumptions, because tables do not state them:

- Scores are shares in [0, 1], higher is better (with `percent = true` in [0, 100]). They are in the columns
  val_score and test_score, whatever the metric is; `Info.metric` is its name.
- Without a phase column, every row with a validation score is a tuning trial. The best row of each cell (and
  of each seed, if a seed column is mapped) on validation is copied as the repeat of that cell. Only its test
  score is compared, although it was not run again. Map the seed only if each seed was a separate search, not
  if it differs between all trials.
- With `over_seeds = true`, each configuration (values of `parameters`) was run on several seeds. The one with
  the best mean validation score over its seeds is chosen, and its rows are the repeats. A configuration that
  lacks a seed that another one of the cell has is not eligible; the report states how many there are.
- Without a validation column, nothing is chosen: every row is a repeat.
- Runs of different cells with the same seed are paired. Without a seed column, each cell has one repeat, of
  seed 0.
- The mapped time is training time, and the mapped memory the accelerator's peak unless the mapping says
  otherwise.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow import parquet

from analysis.load.mapping import MEMORY, MIB, SECONDS, STATUS, TableMapping, near, read_mapping
from analysis.load.study import DERIVED, Info, StudyTable, load_study, ranked, trials_frame
from harness.core.caller import undisturbed
from harness.core.errors import UserError, counted, first_line
from harness.core.study import cell_label

BLANK = ("", "-", "na", "n/a", "none", "null", "nan")


def open_study(
    study: str | None,
    table: Path | None,
    mapping: Path | None,
    uri: str | None,
    predictions: bool = True,
) -> StudyTable:
    """A recorded study by its name, or a table by its file and mapping; `predictions` as in `load_study`.

    Raises:
        UserError: if it cannot be read.
    """
    if study is not None:
        return load_study(study, uri, predictions)
    assert table is not None
    if mapping is None:
        raise UserError("--table needs --mapping FILE, which says what its columns mean")
    return load_table(table, read_mapping(mapping))


@undisturbed()
def load_table(path: str | Path, mapping: TableMapping) -> StudyTable:
    """Read a table of trials.

    Returns:
        The result of `analysis.load.load_study`, with an empty tracking_uri and without epochs and
        predictions. For assumptions see the docstring of this module.

    Raises:
        UserError: if the file cannot be read or is empty, a mapped column is missing, is empty or has invalid
            values, or a trial occurs twice.
    """
    raw = read_table(Path(path))
    _require(raw, path, mapping.columns().values())
    frame = _typed(raw, mapping)
    stem = Path(path).name.partition(".")[0]
    info = Info(
        name=mapping.name or stem,
        question=mapping.question or f"Trials read from {Path(path).name}",
        factors={name: list(frame[name].unique()) for name in mapping.factors},
        baseline=mapping.baseline,
        sampler=mapping.sampler,
        metric=mapping.metric,
        score="",
        selection=mapping.selection,
        rows=len(frame),
        over_seeds=mapping.over_seeds,
    )
    frame["study"] = info.name
    frame = _numbered(frame, mapping)
    if mapping.over_seeds:
        frame, notes = _chosen_over_seeds(frame, mapping)
        info = replace(info, notes=notes)
    else:
        frame = _with_phases(frame, mapping)
    blank = trials_frame(pd.DataFrame(), info)
    tuned = [column for column in frame.columns if column.startswith("param.")]
    dtypes: dict[Any, Any] = blank.dtypes.to_dict()
    trials = frame.reindex(columns=[*blank.columns, DERIVED, *tuned]).astype(dtypes)
    return StudyTable(info, "", trials)


def read_table(path: Path) -> pd.DataFrame:
    """All columns as text, as in the file; missing values are "".

    Raises:
        UserError: if the file cannot be read, is of an unknown kind, or has no rows.
    """
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    try:
        if kind in ("csv", "tsv"):
            separator = "\t" if kind == "tsv" else ","
            raw = pd.read_csv(
                path, sep=separator, dtype="str", keep_default_na=False, encoding="utf-8-sig"
            )
        elif kind == "parquet":
            table = parquet.read_table(path)
            table.validate(full=True)  # else a text that is no UTF-8 is seen only when it is used
            raw = table.to_pandas()
            raw = raw.astype("str").where(raw.notna(), "")
        else:
            raise UserError(f"{path} is not a .csv, .tsv (.gz) or .parquet file")
    except pd.errors.EmptyDataError as error:
        raise UserError(f"{path} is empty") from error
    except (OSError, EOFError, zlib.error, ValueError) as error:  # pandas and arrow: ValueError
        raise UserError(f"cannot read {path}: {first_line(error)}") from error
    if raw.empty:
        raise UserError(f"{path} has no rows")
    return raw.reset_index(drop=True)


@undisturbed()
def load_measures(path: str | Path) -> pd.DataFrame:
    """Similarity of sources and targets: columns source, target and one per measure (higher means more
    similar), and optionally family: only sources of the same family are exchanged in permutation tests.

    Raises:
        UserError: if the file cannot be read, lacks a column, has values that are not numbers, or contains a
            pair twice.
    """
    raw = read_table(Path(path))
    _require(raw, path, ("source", "target"))
    keys = [column for column in ("source", "target", "family") if column in raw]
    names = [column for column in raw.columns if column not in keys]
    if not names:
        raise UserError(f"{path} has no column of a measure besides source and target")
    if (double := raw.duplicated(["source", "target"])).any():
        raise UserError(f"{path} has the pair of row {_row(double)} twice")
    return raw[keys].assign(**{name: _numbers(raw[name], name) for name in names})


def _require(raw: pd.DataFrame, path: str | Path, columns: Iterable[str]) -> None:
    for column in columns:
        if column not in raw:
            raise UserError(f"{path} has no column {column!r}{near(column, raw.columns)}")


def _typed(raw: pd.DataFrame, mapping: TableMapping) -> pd.DataFrame:
    """The mapped columns with the names, types and units of the data frame, and the column cell."""
    frame = pd.DataFrame(index=raw.index)
    for ours, theirs in mapping.columns().items():
        text = raw[theirs].str.strip()
        if ours in mapping.factors:
            if (empty := text == "").any():
                raise UserError(
                    f"column {theirs!r} is empty in row {_row(empty)}: it names the cell"
                )
            frame[ours] = text
        elif ours in ("trial", "device", "phase"):
            frame[ours] = text
        elif ours == "outcome":
            frame[ours] = _outcomes(text, mapping)
        elif ours == "start_time":
            frame[ours] = _times(text, theirs)
        elif ours.startswith("param."):
            frame[ours] = _number_or_text(text)
        else:
            frame[ours] = _numbers(text, theirs)
    for score in ("test_score", "val_score"):
        if score in frame:
            frame[score] = _shares(frame[score], mapping.columns()[score], mapping.percent)
    if mapping.time:
        frame["train_seconds"] *= SECONDS[mapping.time_unit]
    if mapping.memory:
        frame[MEMORY[mapping.memory_of]] *= MIB[mapping.memory_unit]
    if "outcome" not in frame:
        frame["outcome"] = "complete"
    rows = frame[list(mapping.factors)].itertuples(index=False, name=None)
    frame["cell"] = [cell_label(dict(zip(mapping.factors, row, strict=True))) for row in rows]
    return frame


def _row(where: pd.Series) -> int:
    """Number of the first row that `where` marks, counted from 1."""
    return int(where.to_numpy().argmax()) + 1


def _refuse(bad: pd.Series, text: pd.Series, column: str, wanted: str) -> None:
    """Raise UserError for the first row that `bad` marks, quoting its text."""
    if bad.any():
        held, row = text.iloc[_row(bad) - 1], _row(bad)
        raise UserError(f"column {column!r} holds {held!r} in row {row}, not {wanted}")


def _numbers(text: pd.Series, column: str) -> pd.Series:
    """Text as floats, NaN if missing."""
    missing = text.str.lower().isin(BLANK)
    values = pd.to_numeric(text.mask(missing), errors="coerce").astype(float)
    _refuse(values.isna() & ~missing, text, column, "a number")
    if missing.all():
        raise UserError(f"column {column!r} has no number in any row")
    return values


def _shares(values: pd.Series, column: str, percent: bool) -> pd.Series:
    """Scores as shares; impossible values raise UserError."""
    shares = values / 100 if percent else values
    what = "a score in [0, 100]" if percent else "a score in [0, 1] (for [0, 100]: percent = true)"
    _refuse((shares < 0) | (shares > 1), values.map("{:g}".format), column, what)
    return shares


def _times(text: pd.Series, column: str) -> pd.Series:
    """ISO 8601 dates and times, in UTC unless stated otherwise."""
    missing = text.str.lower().isin(BLANK)
    times = pd.to_datetime(text.mask(missing), utc=True, errors="coerce", format="ISO8601")
    what = "a date and time such as 2025-01-31T12:00:00Z"
    _refuse(times.isna() & ~missing, text, column, what)
    return times


def _number_or_text(text: pd.Series) -> pd.Series:
    values = text.mask(text.str.lower().isin(BLANK))
    try:
        return pd.to_numeric(values).astype(float)
    except ValueError:
        return text


def _outcomes(text: pd.Series, mapping: TableMapping) -> pd.Series:
    known = STATUS | {word.lower(): outcome for word, outcome in mapping.outcomes.items()}
    outcomes = text.str.lower().map(known)
    if (bad := outcomes.isna()).any():
        word = text.iloc[_row(bad) - 1]
        raise UserError(
            f"status {word!r} in row {_row(bad)} is not known: say what it is, "
            f'outcomes = {{"{word}" = "crashed"}}'
        )
    return outcomes


def _numbered(frame: pd.DataFrame, mapping: TableMapping) -> pd.DataFrame:
    """The rows with run_id, phase, seed and index, unique within a cell and phase."""
    frame = frame.assign(superseded=False, **{DERIVED: False})
    if not mapping.phase:
        frame["phase"] = "tune" if mapping.selection else "repeat"
    elif (bad := ~frame["phase"].isin(["tune", "repeat"])).any():
        word = frame["phase"].iloc[_row(bad) - 1]
        raise UserError(f"column {mapping.phase!r} holds {word!r}, neither 'tune' nor 'repeat'")
    if not mapping.seed:
        frame["seed"] = 0.0
    elif (bad := frame["seed"] % 1 != 0).any():
        raise UserError(f"column {mapping.seed!r} is not a whole number in row {_row(bad)}")
    slot = ["cell", "phase", "seed"]
    if mapping.trial and (double := frame.duplicated([*slot, "trial"], keep=False)).any():
        name = frame["trial"].iloc[_row(double) - 1]
        rows = frame.index[double & (frame["trial"] == name)] + 1
        raise UserError(
            f"trial {name!r} occurs twice, in rows {rows[0]} and {rows[1]}: delete one, or map no "
            f"trial column if it is not one's name"
        )
    if (double := (frame["phase"] == "repeat") & frame.duplicated(slot)).any():
        raise UserError(
            f"cell {frame['cell'].iloc[_row(double) - 1]!r} has a second repeat of one seed in row "
            f"{_row(double)}: map the seed column, or the missing factor or validation score"
        )
    frame["run_id"] = "row " + (frame.index + 1).astype("str")
    frame["index"] = frame.groupby(["cell", "phase"]).cumcount()
    if mapping.trial and frame["trial"].is_unique:
        frame["run_id"] = frame["trial"]
    if mapping.trial:
        numbers = pd.to_numeric(frame["trial"], errors="coerce")
        numbered = frame.assign(index=numbers)
        if (numbers % 1 == 0).all() and not numbered.duplicated(["cell", "phase", "index"]).any():
            return numbered
    return frame


def _with_phases(frame: pd.DataFrame, mapping: TableMapping) -> pd.DataFrame:
    """The rows with, if no phase is mapped, a copy of the chosen trial of each cell and seed as its
    repeat."""
    if mapping.phase or not mapping.selection:
        return frame
    best = ranked(_scored(frame, mapping), mapping.selection).drop_duplicates(["cell", "seed"])
    repeats = best.assign(
        phase="repeat",
        chosen=best["index"],
        index=best.groupby("cell").cumcount(),
        run_id=best["run_id"] + " (chosen)",
        reason="the chosen trial itself, not run again",
        **{DERIVED: True},
    )
    return pd.concat([frame, repeats.sort_index()], ignore_index=True)


def _scored(frame: pd.DataFrame, mapping: TableMapping) -> pd.DataFrame:
    """The complete trials that may be chosen."""
    scored = frame[frame["outcome"] == "complete"].dropna(subset=mapping.selection)
    if scored.empty:
        raise UserError("no complete trial has a validation score: nothing can be chosen")
    return scored


def _chosen_over_seeds(
    frame: pd.DataFrame, mapping: TableMapping
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """A tuning trial for each configuration, with means over its seeds, and the rows as its repeats; those of
    configurations that were not chosen are superseded. Also notes on configurations that are not eligible."""
    names = [f"param.{name}" for name in mapping.parameters]
    frame = frame.assign(phase="repeat")
    frame["chosen"] = frame.groupby(["cell", *names], sort=False, dropna=False).ngroup()
    if (double := frame.duplicated(["cell", "chosen", "seed"])).any():
        raise UserError(
            f"row {_row(double)} has the configuration and seed of an earlier row: delete one, or map the "
            f"parameter in which they differ"
        )
    frame["chosen"] -= frame.groupby("cell")["chosen"].transform("min")
    done = _scored(frame, mapping)
    scores = [c for c in ("val_score", "val_loss", "train_seconds") if c in frame]
    groups = done.groupby(["cell", "chosen"], sort=False)
    tuned = groups.first().assign(**groups[scores].mean(), seeds=groups.size()).reset_index()
    whole = tuned["seeds"] == tuned.groupby("cell")["seeds"].transform("max")
    ranked = tuned[whole].sort_values(mapping.selection, ascending=mapping.selection == "val_loss")
    best = ranked.drop_duplicates("cell").set_index("cell")["chosen"]
    frame["superseded"] = frame["chosen"] != frame["cell"].map(best)
    frame["index"] = frame.groupby(["cell", "chosen"]).cumcount()
    number = tuned["chosen"].astype("str")
    trials = tuned[whole].assign(
        phase="tune",
        index=tuned["chosen"],
        run_id=tuned["cell"] + ", configuration " + number,
        seed=0.0,
        chosen=None,
        test_score=float("nan"),
        **{DERIVED: True},
    )
    left_out = int((~whole).sum())
    note = (
        f"Not eligible: {counted(left_out, 'configuration')} without a seed that others of their cell have.",
    )
    return pd.concat([trials, frame], ignore_index=True), note * bool(left_out)
