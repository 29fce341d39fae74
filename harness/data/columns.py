"""Find the columns that hold images, labels, parts and groups, by their usual names or by the target's
options."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.core.errors import UserError
from harness.data.images import image_suffixes

USUAL = {
    "image": (
        "image images img imgs file filename filepath path imagefile imagefilename imagename imagepath "
        "imageid imageindex imgfile imgname imgpath imgid picture pic photo"
    ).split(),
    "label": (
        "label labels class classes classname classlabel category categoryname target species diagnosis "
        "breed labelname categoryid classid labelid classidx classindex finelabel coarselabel"
    ).split(),
    "split": "split splits part partition subset set".split(),
    "group": ["group"],
}
"""Usual names of the columns for each role, as `plain` writes them."""
LIKE_GROUPS = (
    "patient patientid subject subjectid participant participantid case caseid person personid individual "
    "individualid animal animalid sequence sequenceid video videoid session sessionid scene slide slideid "
    "lesion lesionid product productid series seriesid study studyid specimen specimenid"
).split()
"""Names of columns that may hold groups; they are named in a note and not used."""


def plain(name: str) -> str:
    """A column's name in lower case, without separators."""
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFKC", name)).lower()


def choose(
    role: str, there: Sequence[str], options: Mapping[str, str], what: str
) -> tuple[str | None, list[str]]:
    """The column for a role, and notes on it; None if none is meant.

    Args:
        role: "image", "label", "split" or "group".
        there: candidate columns.
        options: options of the target; the option `role` names a column.
        what: the target, for messages.

    Raises:
        UserError: if the named column does not exist, or there are several candidates.
    """
    if role in options:
        return named(options[role], there, what), []
    exact = [name for name in there if plain(name) == role]
    usual = [name for name in there if plain(name) in USUAL[role]]
    if len(exact) == 1:
        others = [name for name in usual if name != exact[0]]
        note = f"Column {exact[0]!r} is used as {role}; {quoted(others)} not ([{role}=COLUMN])."
        return exact[0], [note] if others else []
    if len(usual) > 1:
        raise UserError(
            f"{what}: {quoted(usual)} could each be the {role}; say which: [{role}={usual[0]}]"
        )
    if usual:
        return usual[0], [f"Column {usual[0]!r} is used as {role}."]
    return None, []


def named(wanted: str, there: Sequence[str], what: str) -> str:
    """The column of that name, ignoring the letter case if only one matches."""
    if wanted in there:
        return wanted
    near = [name for name in there if plain(name) == plain(wanted)]
    if len(near) == 1:
        return near[0]
    raise UserError(f"{what}: no column {wanted!r}; there are {quoted(there)}")


def missing(role: str, there: Sequence[str], what: str) -> UserError:
    """The error for a table in which no column has a usual name."""
    headless = any(Path(name).suffix.lower() in image_suffixes() for name in there)
    why = "the first line must name the columns" if headless else f"name one: [{role}=COLUMN]"
    return UserError(f"{what}: no column for the {role}s; there are {quoted(there)}; {why}")


def group_notes(columns: Mapping[str, Sequence[str]], used: Sequence[str | None]) -> list[str]:
    """Notes on unused columns that look like groups and in which some value has several images.

    Args:
        columns: name -> value of each row.
        used: columns that are used.
    """
    return [
        f"Column {name!r} looks like groups of images that belong together and is not used; [group={name}] "
        "keeps each in one part."
        for name, values in columns.items()
        if name not in used and looks_like_groups(name) and 1 < len(set(values)) < len(values)
    ]


def looks_like_groups(name: str) -> bool:
    """Whether a column of that name may say which images belong together."""
    return plain(name) in LIKE_GROUPS


def quoted(names: Sequence[str]) -> str:
    """Names for a message."""
    return ", ".join(map(repr, names[:12])) + (
        f" and {len(names) - 12} more" if len(names) > 12 else ""
    )
