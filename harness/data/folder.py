"""Images, sounds or texts in folders: one folder per class, or parts (train, val, test) that contain one
folder per class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from harness.core.errors import UserError, few
from harness.data.groups import groups_from_names
from harness.data.images import shown
from harness.data.labels import normalized
from harness.data.media import MEDIA, Images, Medium
from harness.data.parts import PARTS, TEST, TRAIN, class_notes, official_parts, part_named
from harness.data.target import FileTarget, Target
from harness.data.tree import SkippedFiles, contains, files_below, list_folder

_ClassFolder = tuple[str, str, Path]
"""Part, class name, and the folder with the images of that class in that part."""
LAYOUTS = ("classes", "parts")
KINDS = {f"{medium.noun}s": medium for medium in MEDIA}
"""Values of the option "kind"."""
UNLABELLED = frozenset("unsup unsupervised unlabeled unlabelled".split())
"""Names of folders beside the class folders of a part, for examples without a label."""
BESIDE = "folders beside the parts"


def folder_target(path: str, options: Mapping[str, str]) -> Target:
    """The images below a folder, or the sounds if there are no images, or the texts if there are neither.

    Args:
        path: path of the folder.
        options: "kind": "images", "sounds" or "texts", if the folder contains several. "layout": "classes"
            (each folder is a class, whatever its name) or "parts" (train, val and test are parts of the data
            set, above or below the class folders). "group": a regular expression that finds the group of an
            image (patient, sequence, product) in its file name or path.

    Raises:
        UserError: if the layout is unknown or ambiguous, or a class has no images.
    """
    root = Path(path).expanduser()
    what = f"target folder:{path}"
    if not os.path.isdir(root):
        raise UserError(f"{what}: no such folder; name a folder with one sub-folder per class")
    layout = options.get("layout")
    if layout is not None and layout not in LAYOUTS:
        raise UserError(f"{what}: layout must be classes or parts, got {layout!r}")
    kind = options.get("kind")
    if kind is not None and kind not in KINDS:
        raise UserError(f"{what}: kind must be {', '.join(KINDS)}, got {kind!r}")
    medium = next((medium for medium in MEDIA if contains(root, medium)), Images)
    tree = _Tree(root, what, KINDS.get(kind or "", medium))
    if layout is None:
        layout = _layout(tree)
    found = _read(tree, _parts(tree) if layout == "parts" else _classes(tree))
    classes = sorted({name for _, name, _ in found})
    if len(classes) < 2:
        raise UserError(
            f"{what}: needs at least 2 class folders with {tree.nouns}, found {len(classes)}"
        )
    paths = tuple(path for _, _, images in found for path in images)
    labels = [classes.index(name) for _, name, images in found for _ in images]
    own = official_parts(
        [part for part, _, images in found for _ in images], what, tree.medium.noun
    )
    presented, more = tree.medium.of(paths, options, what)
    groups, grouping = None, ""
    if pattern := options.get("group"):
        below = [path.relative_to(root).as_posix() for path in paths]
        groups, grouping = groups_from_names(below, pattern, what)
    return FileTarget(
        f"folder:{root.resolve().name}",
        tuple(classes),
        np.array(labels, np.int64),
        own.test,
        paths,
        official_val=own.val,
        groups=groups,
        notes=(
            *tree.notes,
            *own.notes,
            *filter(None, [grouping]),
            *more,
            *tree.of_other_kinds(len(paths)),
            *tree.skipped.notes(root),
        ),
        medium=presented,
    )


@dataclass
class _Tree:
    """A folder whose layout is being determined, with notes and skipped files."""

    root: Path
    what: str
    medium: type[Medium]
    notes: list[str] = field(default_factory=list)

    @cached_property
    def skipped(self) -> SkippedFiles:
        """The files that are not examples."""
        return SkippedFiles(self.medium)

    @property
    def nouns(self) -> str:
        """What the examples are called in messages."""
        return f"{self.medium.noun}s"

    def folders(self, folder: Path) -> list[Path]:
        """The sub-folders of a folder that should contain only folders; files are skipped."""
        folders, files = list_folder(folder, self.skipped)
        for path in files:
            outside = f"{self.nouns} outside the class folders"
            known = self.medium.recognises(path)
            self.skipped.add(outside if known else self.skipped.unread, path)
        return folders

    def full(self, folder: Path) -> list[Path]:
        """Sub-folders that contain examples."""
        return [path for path in _folders(folder) if contains(path, self.medium)]

    def of_other_kinds(self, used: int) -> Iterator[str]:
        """A sentence on skipped files of another kind, if they are more than half of the `used` examples."""
        skipped = self.skipped.by_kind.get(self.skipped.unread, ())
        others = {
            kind: count
            for kind, medium in KINDS.items()
            if medium is not self.medium
            and 2 * (count := sum(map(medium.recognises, skipped))) > used
        }
        if others:
            there = " and ".join(f"{kind} ({count})" for kind, count in others.items())
            yield (
                f"The folder also contains {there}: only the {self.nouns} are used; "
                f"[kind={next(iter(others))}] changes that."
            )

    def below(self, path: Path) -> str:
        """A path relative to the folder, for messages."""
        return shown(path.relative_to(self.root))


def _folders(folder: Path) -> list[Path]:
    """Sub-folders by name, without hidden ones."""
    folders, _ = list_folder(folder, SkippedFiles())
    return sorted(folders)


def _layout(tree: _Tree) -> str:
    """ "classes" or "parts", by the names and contents of the folders.

    Raises:
        UserError: if both are possible, with the option for each.
    """
    top = tree.full(tree.root)
    parts = [folder for folder in top if part_named(folder.name)]
    others = [folder for folder in top if folder not in parts]
    with_classes = [folder for folder in parts if tree.full(folder)]
    if with_classes and others:
        raise _two_readings(
            tree,
            f"{_listed(with_classes)} could be parts of the data set, or classes as {_listed(others)}",
            f"takes {_listed(parts)} as parts and skips {_listed(others)}",
            f"takes {_listed(top)} as the classes",
        )
    if with_classes:
        return "parts"
    if parts and not others:
        raise _two_readings(
            tree,
            f"{_listed(parts)} contain {tree.nouns}, but no class folders",
            f"is for class folders inside {_listed(parts)} (or list the {tree.nouns} in a table: csv:FILE)",
            f"takes {_listed(parts)} as the classes",
        )
    _refuse_nested(tree, top)
    return "classes"


def _refuse_nested(tree: _Tree, top: Sequence[Path]) -> None:
    """Refuse folders that seem to contain parts, or the same classes again."""
    inner = {folder: tree.full(folder) for folder in top}
    if not top:
        return
    if len(top) == 1 and inner[top[0]]:
        raise UserError(
            f"{tree.what}: needs at least 2 class folders with {tree.nouns}, found 1 ({_listed(top)}); "
            f"did you mean folder:{shown(top[0])}?"
        )
    named = {normalized(f.name) for found in inner.values() for f in found if part_named(f.name)}
    if TRAIN in set(map(part_named, named)) and len(named) > 1:
        raise _two_readings(
            tree,
            f"{' and '.join(sorted(named))} are inside {_listed(top)}",
            "takes them as parts of the data set",
            f"takes each of {_listed(top)} as one class with all {tree.nouns} below it",
        )
    common = set.intersection(*({normalized(f.name) for f in found} for found in inner.values()))
    if (
        len(top) > 1
        and len(common) > 1
        and not any(_has_files(folder, tree.medium) for folder in top)
    ):
        again = _listed(sorted(common))
        raise _two_readings(
            tree,
            f"each of {_listed(top)} contains the same sub-folders ({again})",
            f"is for parts, named train, val and test, with the classes {again} inside (or name one of "
            f"them: folder:{shown(top[0])})",
            f"takes {_listed(top)} as the classes",
        )


def _two_readings(tree: _Tree, seen: str, parts: str, classes: str) -> UserError:
    return UserError(
        f"{tree.what}: {seen}; folder:PATH[layout=parts] {parts}, folder:PATH[layout=classes] {classes}"
    )


def _classes(tree: _Tree) -> Iterator[_ClassFolder]:
    """The class folders of a folder in which every sub-folder is a class.

    Raises:
        UserError: if one of them has no images.
    """
    nested = 0
    for path in tree.folders(tree.root):
        nested += len(_folders(path))
        yield TRAIN, path.name, path
    if nested:
        tree.notes.append(
            f"Sub-folders of the class folders ({nested}) are not classes of their own: all {tree.nouns} "
            "below a class folder belong to that class."
        )


def _parts(tree: _Tree) -> Iterator[_ClassFolder]:
    """The class folders of a data set with parts, which are above or below the classes.

    Raises:
        UserError: if there is no training part, a part occurs twice, or it has no class folders.
    """
    here = tree.folders(tree.root)
    found = [path for path in here if part_named(path.name) and contains(path, tree.medium)]
    if not found:
        yield from _parts_inside(tree, here)
        return
    by_part: dict[str, Path] = {}
    for path in found:
        part = str(part_named(path.name))
        if part in by_part:
            raise UserError(
                f"{tree.what}: two folders for the {part} part: {_listed([by_part[part], path])}; "
                "rename or move one of them"
            )
        by_part[part] = path
    if TRAIN not in by_part:
        raise UserError(f"{tree.what}: no folder named train, only {_listed(found)}")
    for path in here:
        if path not in found:
            tree.skipped.add(BESIDE, path)
    tree.notes.append(f"The parts are the folders {_listed(sorted(found))}.")
    for part in PARTS:
        if part in by_part:
            yield from (
                (part, folder.name, folder) for folder in _class_folders(tree, part, by_part[part])
            )


def _class_folders(tree: _Tree, part: str, folder: Path) -> Iterator[Path]:
    """The class folders of a part; a test part without any has no labels and is skipped."""
    classes = _folders(folder)
    if not classes and part == TEST:
        images = files_below(folder, tree.skipped)
        tree.notes.append(
            f"{tree.below(folder)} contains {len(images)} {tree.nouns} without class folders: they have no "
            "labels and are skipped."
        )
        return
    if not classes:
        raise UserError(
            f"{tree.what}: {tree.below(folder)} contains {tree.nouns}, but no class folders"
        )
    for path in tree.folders(folder):
        if path.name.lower() in UNLABELLED:
            tree.skipped.add(f"{tree.nouns} without labels", path)
        elif part == TRAIN or contains(path, tree.medium):
            yield path


def _parts_inside(tree: _Tree, here: Sequence[Path]) -> Iterator[_ClassFolder]:
    """The class folders of a data set in which the parts are folders inside the class folders."""
    train = 0
    for path in here:
        for sub in tree.folders(path):
            if part := part_named(sub.name):
                train += part == TRAIN
                yield part, path.name, sub
            else:
                tree.skipped.add(BESIDE, sub)
    if not train:
        raise UserError(f"{tree.what}: no folder named train, so layout=parts does not fit")
    tree.notes.append("The parts are folders inside the class folders.")


def _read(tree: _Tree, found: Iterator[_ClassFolder]) -> list[tuple[str, str, list[Path]]]:
    """(part, class, images), in the order of PARTS and, within a part, of the class names.

    Raises:
        UserError: if a class has no images or no printable name, or the parts have different classes.
    """
    by_part: dict[str, dict[str, list[Path]]] = {}
    for part, name, folder in found:
        if not name.isprintable():
            raise UserError(
                f"{tree.what}: the name of class folder {shown(Path(name))!r} is not printable; rename it"
            )
        before = len(tree.skipped.by_kind.get(tree.skipped.unread, ()))
        images = files_below(folder, tree.skipped)
        if not images:
            none = tree.skipped.by_kind.get(tree.skipped.unread, [])[before:]
            files = f", only {len(none)} files such as {shown(Path(none[0].name))}" if none else ""
            kinds = [k for k, other in KINDS.items() if none and other.recognises(none[0])]
            hint = f"; if the examples are {kinds[0]}, write [kind={kinds[0]}]" if kinds else ""
            raise UserError(
                f"{tree.what}: class folder {tree.below(folder)!r} contains no {tree.nouns}{files}{hint}"
            )
        by_part.setdefault(part, {}).setdefault(normalized(name), []).extend(images)
    tree.notes += class_notes(by_part, tree.what, tree.medium.noun)
    return [
        (part, name, by_part[part][name])
        for part in PARTS
        if part in by_part
        for name in sorted(by_part[part])
    ]


def _has_files(folder: Path, medium: type[Medium]) -> bool:
    """Whether there is an example in the folder itself."""
    _, files = list_folder(folder, SkippedFiles())
    return any(map(medium.recognises, files))


def _listed(names: Sequence[Path | str]) -> str:
    return few([shown(Path(Path(name).name)) for name in names], separator=", ")
