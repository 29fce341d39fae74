"""Tables of the measurements: lines of JSON -> rows per program, goals with their results, Markdown, CSV.

A line is the output of a program, with task, program and round; `wanted` is the number of trials of the
compared study. The time of a program that ran fewer trials is scaled, because other programs keep nothing
between trials.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from statistics import median
from typing import Any

Line = Mapping[str, Any]

PEERS = ("tutorial", "lightning", "fastai", "trainer")
OURS, BARE, ONE_PASS, NO_REUSE = "ours", "bare", "one_pass", "ours, no reuse"
SPEEDUP = {"linear_probe": 20.0, "last_block": 10.0, "full": 1.6}
"""Goal for the ratio of the time of the fastest other program to ours, at least."""
LIMIT = {"linear_probe": (ONE_PASS, 1.3), "full": (BARE, 1.05)}
"""Goal for the ratio of our time to that of a lower limit, at most."""
MEMORY = 1.3
DEFAULT_STUDY_SPEEDUP = 1.6
OVERHEAD_MS, ALONE, SAME = 45.0, 1.2, 1.2
FIRST_RESULT = 1.9
"""Goal for the time to the first result, as a multiple of the time of the imports alone; half of the 3.7 that
it was on 2026-11-30."""
BUSY = {"busy": 3.0, "quiet": 1.05}
"""Goals beside a busy program: time as a multiple of the quiet time; on a quiet machine, of the time with
OpenMP's own way of waiting."""
TIME_BOX, WRONG = 1 / 3, 0.05
"""Goals for races, simulated: the share of the time of a study with equal numbers in which they choose as
well, and the share of them that retire the best finalist."""
LARGE_SECONDS, LARGE_READ_MIB, KIB_PER_IMAGE = 20.0, 1.0, 1.0


@dataclass(frozen=True)
class Row:
    """One program with one task; medians over rounds.

    Attributes:
        work: the task.
        program: name of the program.
        rounds: number of measurements.
        measured_trials: number of trials in one round.
        trials: number of trials to which `seconds` refers.
        seconds: time for all `trials`, scaled if fewer were measured; NaN if the program did not run.
        times_ours: `seconds` divided by ours.
        accuracy: accuracy on the validation images after the last epoch, median over trials.
        peak_mib: highest resident memory of the process, without loader workers.
        workers: number of loader workers.
        note: why there are no numbers, or a caveat.
    """

    work: str
    program: str
    rounds: int
    measured_trials: int
    trials: int
    seconds: float
    times_ours: float
    accuracy: float
    peak_mib: float
    workers: int
    note: str


@dataclass(frozen=True)
class Goal:
    """One goal, its measurement, and whether it was reached (None if it was not measured)."""

    work: str
    goal: str
    measured: str
    reached: bool | None


def rows(lines: Sequence[Line]) -> list[Row]:
    """One row per task and program, in the order of the lines."""
    # Overhead and the large folder have goals but no rows, unless they failed.
    shown = [x for x in lines if "wanted" in x or "note" in x]
    keys = dict.fromkeys((x["work"], x["program"]) for x in shown)
    return [_row(lines, *key) for key in keys]


def _row(lines: Sequence[Line], work: str, program: str) -> Row:
    found = _lines(lines, work, program)
    notes = [
        x["note"] for x in lines if (x["work"], x["program"]) == (work, program) if "note" in x
    ]
    trials, wanted = (found[0][k] if found else 0 for k in ("trials", "wanted"))
    seconds = _seconds(lines, work, program)
    scaled = [f"{trials} measured, x{wanted / trials:g}"] if found and trials != wanted else []
    return Row(
        work=work,
        program=program,
        rounds=len(found),
        measured_trials=trials,
        trials=wanted,
        seconds=seconds,
        times_ours=seconds / _seconds(lines, work, OURS),
        accuracy=_median(x["accuracy"] for x in found),
        peak_mib=_median(x["peak_rss_mib"] for x in found),
        workers=found[0].get("workers", 0) if found else 0,
        note="; ".join(dict.fromkeys(scaled + notes)),
    )


def _lines(lines: Sequence[Line], work: str, program: str) -> list[Line]:
    return [x for x in lines if (x["work"], x["program"]) == (work, program) and "seconds" in x]


def _median(values: Iterable[float]) -> float:
    found = list(values)
    return median(found) if found else math.nan


def _seconds(lines: Sequence[Line], work: str, program: str) -> float:
    found = _lines(lines, work, program)
    return _median(x["seconds"] * x["wanted"] / x["trials"] for x in found)


def goals(lines: Sequence[Line]) -> list[Goal]:
    """All goals, in the order of the tasks."""
    found: list[Goal] = []
    for work, least in SPEEDUP.items():
        found.append(_faster_than_peers(lines, work, least))
        if work in LIMIT:
            found.append(_near_limit(lines, work))
        found += [_same_accuracy(lines, work), _memory(lines, work)]
    found += [*_default_study(lines), *_overhead(lines), _first_result(lines)]
    return [*found, *_busy_neighbour(lines), *_time_box(lines), *_large_folder(lines)]


def _judge(work: str, goal: str, value: float, text: str, reached: bool) -> Goal:
    """A goal for one number, which is NaN if it was not measured."""
    if math.isnan(value):
        return Goal(work, goal, "not measured", None)
    return Goal(work, goal, text, reached)


def _faster_than_peers(lines: Sequence[Line], work: str, least: float) -> Goal:
    seconds = {p: s for p in PEERS if not math.isnan(s := _seconds(lines, work, p))}
    peer = min(seconds, key=seconds.__getitem__, default="")
    ratio = seconds.get(peer, math.nan) / _seconds(lines, work, OURS)
    goal = f"at least {least:g}x the fastest peer"
    absent = [p for p in PEERS if p not in seconds]
    without = f"; without {', '.join(absent)}" if absent else ""
    return _judge(work, goal, ratio, f"{ratio:.1f}x ({peer}{without})", ratio >= least)


def _near_limit(lines: Sequence[Line], work: str) -> Goal:
    program, most = LIMIT[work]
    ratio = _seconds(lines, work, OURS) / _seconds(lines, work, program)
    names = {ONE_PASS: "one forward pass + head training", BARE: "the bare loop"}
    goal = f"time within {most:g}x of {names[program]}"
    return _judge(work, goal, ratio, f"{ratio:.2f}x", ratio <= most)


def _same_accuracy(lines: Sequence[Line], work: str) -> Goal:
    """Noise is two standard deviations of the difference between two shares of n validation images."""
    goal = "accuracy of every peer's, within noise"
    own = _lines(lines, work, OURS)
    others = {p: _median(x["accuracy"] for x in _lines(lines, work, p)) for p in PEERS}
    others = {p: a for p, a in others.items() if not math.isnan(a)}
    if not own or not others:
        return Goal(work, goal, "not measured", None)
    mine = _median(x["accuracy"] for x in own)
    peer = max(others, key=lambda p: abs(others[p] - mine))
    noise = 2 * math.sqrt(2 * mine * (1 - mine) / own[0]["val_images"])
    text = (
        f"{mine:.1%}, furthest {peer} {others[peer]:.1%}, noise {100 * noise:.1f} points "
        f"(all peers: {min(others.values()):.1%} to {max(others.values()):.1%})"
    )
    return Goal(work, goal, text, abs(others[peer] - mine) <= noise)


def _memory(lines: Sequence[Line], work: str) -> Goal:
    ours, bare = (_median(x["peak_rss_mib"] for x in _lines(lines, work, p)) for p in (OURS, BARE))
    goal = f"peak memory within {MEMORY:g}x of the bare loop"
    text = f"{ours / bare:.2f}x ({ours:.0f} against {bare:.0f} MiB)"
    return _judge(work, goal, ours / bare, text, ours / bare <= MEMORY)


def _default_study(lines: Sequence[Line]) -> list[Goal]:
    work = "default_study"
    ratio = _seconds(lines, work, NO_REUSE) / _seconds(lines, work, OURS)
    goal = f"at least {DEFAULT_STUDY_SPEEDUP:g}x the study without reuse"
    faster = _judge(work, goal, ratio, f"{ratio:.2f}x", ratio >= DEFAULT_STUDY_SPEEDUP)
    goal = "same results without reuse"
    pair = [_lines(lines, work, p) for p in (OURS, NO_REUSE)]
    if not all(pair):
        return [faster, Goal(work, goal, "not measured", None)]
    a, b = (found[0]["runs"] for found in pair)
    gaps = [abs(a.get(k, math.inf) - b.get(k, math.inf)) for k in {**a, **b}]
    differ = [gap for gap in gaps if gap != 0]
    text = (
        f"{len(differ)} of {len(gaps)} accuracies differ, by at most {max(differ, default=0):.4f}"
    )
    return [faster, Goal(work, goal, text, not differ)]


def _overhead(lines: Sequence[Line]) -> list[Goal]:
    work = "overhead"
    found = _lines(lines, work, OURS)
    keys = "early_ms", "late_ms", "early_alone_ms", "late_alone_ms"
    early, late, early_alone, late_alone = (_median(x[k] for x in found) for k in keys)
    trials = found[0]["trials"] if found else 0
    growth, share = late / early, early / early_alone
    return [
        _judge(
            work,
            f"under {OVERHEAD_MS:g} ms per trial",
            late,
            f"{early:.0f} ms at trials 5 to 55, {late:.0f} ms at the last 50 of {trials:,}",
            max(early, late) < OVERHEAD_MS,
        ),
        _judge(
            work,
            f"within {ALONE:g}x of calling Optuna and MLflow directly",
            share,
            f"{share:.2f}x at trials 5 to 55, {late / late_alone:.2f}x at the last 50",
            max(share, late / late_alone) <= ALONE,
        ),
        _judge(
            work,
            f"the same late as early (within {SAME:g}x)",
            growth,
            f"{growth:.2f}x at trial {trials:,} (called directly {late_alone / early_alone:.2f}x)",
            growth <= SAME,
        ),
    ]


def _first_result(lines: Sequence[Line]) -> Goal:
    work = "first_result"
    found = _lines(lines, work, OURS)
    seconds, imports = (_median(x[k] for x in found) for k in ("seconds", "imports"))
    return _judge(
        work,
        f"within {FIRST_RESULT:g}x of importing torch, torchvision and timm",
        seconds / imports,
        f"{seconds / imports:.2f}x ({seconds:.1f} against {imports:.1f} s)",
        seconds / imports <= FIRST_RESULT,
    )


def _busy_neighbour(lines: Sequence[Line]) -> list[Goal]:
    work = "busy_neighbour"
    found = _lines(lines, work, OURS)
    before = _median(x["threads_busy_before"] for x in found)
    goals = []
    for kind, words in (("threads", "a trial with 2 threads"), ("workers", "2 workers")):
        for state, most in BUSY.items():
            ratio = _median(x[f"{kind}_{state}"] for x in found)
            beside = "beside a busy program" if state == "busy" else "on a quiet machine"
            text = f"{ratio:.2f}x"
            if (kind, state) == ("threads", "busy"):
                text += f" ({before:.2f}x with OpenMP's own way of waiting)"
            goal = f"{words} {beside}: at most {most:g}x"
            goals.append(_judge(work, goal, ratio, text, ratio <= most))
    return goals


def _time_box(lines: Sequence[Line]) -> list[Goal]:
    work = "time_box"
    found = _lines(lines, work, OURS)
    if not found:
        return [Goal(work, "a race in at most a third of the time", "not measured", None)]
    goals = []
    for name, share in found[-1]["needed"].items():
        goal = f"as good a choice in at most {TIME_BOX:.2f} of the time of equal numbers ({name})"
        text = "not even in all of it" if share is None else f"{share:.2f}"
        goals.append(Goal(work, goal, text, share is not None and share <= TIME_BOX))
    wrong = max(found[-1]["wrong"].values())
    goal = f"the best finalist is retired in at most {WRONG:.0%} of races"
    return [*goals, Goal(work, goal, f"{wrong:.1%}", wrong <= WRONG)]


def _large_folder(lines: Sequence[Line]) -> list[Goal]:
    work = "large_folder"
    found = _lines(lines, work, OURS)
    seconds, read, grown = (
        _median(x[k] for x in found) for k in ("seconds", "read_mib", "grown_mib")
    )
    images = found[0]["images"] if found else 0
    per_image = grown * 1024 / images if images else math.nan
    return [
        _judge(
            work,
            f"indexed and split in under {LARGE_SECONDS:g} s without reading pixels",
            seconds,
            f"{images:,} images in {seconds:.1f} s, {read:.3f} MiB read",
            seconds < LARGE_SECONDS and read < LARGE_READ_MIB,
        ),
        _judge(
            work,
            f"memory of the index under {KIB_PER_IMAGE:g} KiB per image",
            per_image,
            f"{per_image:.2f} KiB per image, {grown:.0f} MiB in all",
            per_image < KIB_PER_IMAGE,
        ),
    ]


def markdown(lines: Sequence[Line]) -> str:
    """Both tables, with the machine."""
    measured = [
        (
            r.work,
            r.program,
            f"{r.trials}",
            _number(r.seconds, 1),
            _number(r.times_ours, 2),
            _number(100 * r.accuracy, 1),
            _number(r.peak_mib, 0),
            f"{r.workers}",
            f"{r.rounds}",
            r.note,
        )
        for r in rows(lines)
    ]
    head = "work,program,trials,seconds,times ours,accuracy %,peak MiB,workers,rounds,note"
    return (
        "\n\n".join(
            [
                "\n".join(dict.fromkeys(str(x["machine"]) for x in lines)),
                goals_table(goals(lines)),
                _table(head.split(","), measured),
            ]
        )
        + "\n"
    )


def goals_table(found: Iterable[Goal]) -> str:
    """Goals in Markdown, each with its verdict."""
    verdict = {True: "yes", False: "**no**", None: "not measured"}
    aimed = [(g.work, g.goal, g.measured, verdict[g.reached]) for g in found]
    return _table("work,goal,measured,reached".split(","), aimed)


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:,.{digits}f}"


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    every = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in every)


def to_csv(lines: Sequence[Line]) -> str:
    """The rows with all digits; empty fields for what was not measured."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([f.name for f in fields(Row)])
    for row in rows(lines):
        writer.writerow(["" if x != x else x for x in astuple(row)])
    return out.getvalue()
