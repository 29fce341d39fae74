"""Find the columns with images, labels, parts and groups, by their usual names or by the target's options."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.core.errors import UserError, quoted
from harness.data.media import suffixes

USUAL = {
    "image": (
        "image images img imgs file filename filepath path imagefile imagefilename imagename imagepath "
        "imageid imageindex imgfile imgname imgpath imgid picture pic photo"
    ).split(),
    "audio": (
        "audio audiofile audiofilename audiopath sound soundfile wav wavfile clip recording utterance"
    ).split(),
    "text": (
        "text texts sentence sentences review reviews document content message comment tweet headline "
        "utterance"
    ).split(),
    "label": (
        "label labels class classes classname classlabel category categoryname target species diagnosis "
        "breed sentiment labelname categoryid classid labelid classidx classindex finelabel coarselabel"
    ).split(),
    "split": "split splits part partition subset set".split(),
    "group": ["group"],
}
"""Usual names of the columns for each role, in the form that `simplified` returns."""
EXAMPLES = {"image": "image", "audio": "sound", "text": "text"}
"""Roles of the column with the examples, in the order in which they are searched for, and what is in it."""
LIKE_GROUPS = (
    "patient patientid subject subjectid participant participantid case caseid person personid individual "
    "individualid animal animalid sequence sequenceid video videoid session sessionid scene slide slideid "
    "speaker speakerid lesion lesionid product productid series seriesid study studyid specimen specimenid"
).split()
"""Names of columns that may contain groups; such columns are mentioned in a note and not used."""


def simplified(name: str) -> str:
    """A column's name in lower case, without separators."""
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFKC", name)).lower()


def choose(
    role: str, there: Sequence[str], options: Mapping[str, str], what: str
) -> tuple[str | None, list[str]]:
    """The column for a role, and notes on it; None if there is no such column.

    Args:
        role: "image", "audio", "text", "label", "split" or "group".
        there: candidate columns.
        options: options of the target; the option `role` names a column.
        what: the target, for messages.

    Raises:
        UserError: if the named column does not exist, or there are several candidates.
    """
    if role in options:
        return named(options[role], there, what), []
    exact = [name for name in there if simplified(name) == role]
    usual = [name for name in there if simplified(name) in USUAL[role]]
    if len(exact) == 1:
        others = [name for name in usual if name != exact[0]]
        note = f"Column {exact[0]!r} is used as {role}, not {quoted(others)}; [{role}=COLUMN] changes that."
        return exact[0], [note] if others else []
    found = only(usual, role, what)
    return found, [] if found is None else [f"Column {found!r} is used as {role}."]


def only(names: Sequence[str], role: str, what: str) -> str | None:
    """The only one of these columns; None if there are none.

    Raises:
        UserError: if there are several.
    """
    if len(names) > 1:
        raise UserError(
            f"{what}: any of {quoted(names)} could be the {role}; name one, e.g. [{role}={names[0]}]"
        )
    return names[0] if names else None


def choose_examples(
    there: Sequence[str], options: Mapping[str, str], what: str
) -> tuple[str, str, list[str]]:
    """The column with the examples, its role ("image", "audio" or "text"), and notes on it.

    Raises:
        UserError: as `choose`, or if there is no such column.
    """
    for role in [role for role in EXAMPLES if role in options] or list(EXAMPLES):
        column, notes = choose(role, there, options, what)
        if column is not None:
            return column, role, notes
    raise missing(
        "images, sounds or text", there, what, "[image=COLUMN], [audio=COLUMN] or [text=COLUMN]"
    )


def named(wanted: str, there: Sequence[str], what: str) -> str:
    """The column of that name, ignoring case if only one column matches."""
    if wanted in there:
        return wanted
    near = [name for name in there if simplified(name) == simplified(wanted)]
    if len(near) == 1:
        return near[0]
    raise UserError(f"{what}: no column {wanted!r}; the columns are {quoted(there)}")


def missing(role: str, there: Sequence[str], what: str, option: str = "") -> UserError:
    """The error for a table in which no column has a usual name for the role."""
    headless = any(Path(name).suffix.lower() in suffixes() for name in there)
    why = (
        "the first line must name the columns"
        if headless
        else f"name one with {option or f'[{role}=COLUMN]'}"
    )
    return UserError(
        f"{what}: no column for the {role}s is recognised; the columns are {quoted(there)}; {why}"
    )


def group_notes(
    columns: Mapping[str, Sequence[str]], used: Sequence[str | None], noun: str
) -> list[str]:
    """Notes on unused columns that look like groups, if several examples share a value.

    Args:
        columns: name -> value of each row.
        used: names of the columns that are used.
        noun: what an example is called.
    """
    return [
        f"Column {name!r}, which is not used, looks like groups of {noun}s that belong together; "
        f"[group={name}] puts all {noun}s of a group into the same part."
        for name, values in columns.items()
        if name not in used and looks_like_groups(name) and 1 < len(set(values)) < len(values)
    ]


def looks_like_groups(name: str) -> bool:
    """Whether a column of that name may say which images belong together."""
    return simplified(name) in LIKE_GROUPS
