"""Read a study file: import it once, with its folder on Python's path, and return its `study`."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import hashlib
import importlib.util
import re
import sys
import tokenize
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.core.caller import undisturbed
from harness.core.errors import UnknownName, UserError
from harness.core.study import SAFE_NAME, Study, unknown_argument
from harness.core.versions import IMPORTED

OURS = tuple(Path(__file__).parents[2] / name for name in ("harness", "analysis"))
NEEDED = sys.stdlib_module_names | IMPORTED
SHIPPED = Path(__file__).parents[2] / "studies"
"""Folder of the studies that come with the project, in a checkout or an installed wheel."""


def study_path(text: str) -> Path:
    """The study file that `--space TEXT` means: a path, or else the name of a study in SHIPPED."""
    given = Path(text)
    shipped = SHIPPED / f"{given.stem}.py"
    by_name = text in (given.stem, f"studies/{given.stem}.py")
    return shipped if by_name and not given.exists() and shipped.is_file() else given


def existing_study(text: str) -> Path:
    """`study_path` of a file that is there. Called before imports that take seconds.

    Raises:
        UserError: if there is no such file; the nearest name of a shipped study is suggested.
    """
    path = study_path(text)
    _require_file(path)
    return path


def _require_file(path: Path) -> None:
    try:
        if path.is_file():
            return
        what = "is a folder" if path.is_dir() else "does not exist"
    except OSError as error:  # Python before 3.14 raises for a name that is too long
        raise UserError(f"study file {path} cannot be read: {error.strerror}") from error
    near = difflib.get_close_matches(path.stem, [file.stem for file in SHIPPED.glob("*.py")], n=1)
    hint = f"; did you mean {near[0]}?" if near and what == "does not exist" else ""
    raise UserError(f"study file {path} {what}{hint}")


@undisturbed()
def load_study(path: Path) -> Study:
    """The `study` of a study file, named after the file if it has no name.

    Raises:
        UserError: naming the file, the line and what is wrong.
    """
    study = run_file(path).get("study")
    if study is None:
        raise UserError(f"study file {path} defines no `study`; end it with study = Study(...)")
    if not isinstance(study, Study):
        raise UserError(
            f"study file {path}: `study` must be a harness.Study, got {type(study).__name__}"
        )
    name = study.name or path.stem
    if not SAFE_NAME.fullmatch(name):
        raise UserError(
            f"study name {name!r} must consist of letters, digits, '_', '.' and '-'; rename the file, or set "
            "Study(name=...)"
        )
    return dataclasses.replace(study, name=name)


def run_file(path: Path) -> dict[str, Any]:
    """Import a study file and return what it defines, by name. Its folder is first on Python's path, as with
    `python FILE`. It is imported again only if it has changed, or a module of its folder that it imported
    has.

    Raises:
        UserError: naming the file, the line and what is wrong.
    """
    _require_file(path)
    if path.suffix != ".py":
        raise UserError(f"study file {path} is not a Python file (.py)")
    file = path.resolve()
    if _imported and _imported[-1].is_current(file):
        return vars(_imported[-1].module)
    _refuse_shadows(path, file)
    clear_caches()
    if added := str(file.parent) not in sys.path[:1]:
        sys.path.insert(0, str(file.parent))
    before = set(sys.modules)
    try:
        module = _execute(path, file)
    except BaseException:
        hashes = {file: "", **_neighbours(file.parent, before)}
        _Imported(file, ModuleType(""), hashes, added).forget()
        raise
    hashes = {file: _sha256(file), **_neighbours(file.parent, before)}
    _imported.append(_Imported(file, module, hashes, added))
    return vars(module)


@dataclass(frozen=True)
class _Imported:
    """The study file that was imported last.

    Attributes:
        file: its absolute path.
        module: the imported module.
        hashes: file -> hash at the time of the import, for the study file and each module of its folder that
            it imported.
        added: whether its folder was added to Python's path for the import.
    """

    file: Path
    module: ModuleType
    hashes: Mapping[Path, str]
    added: bool

    def is_current(self, file: Path) -> bool:
        """Whether the file and the modules that it imported are unchanged."""
        return self.file == file and all(_sha256(p) == h for p, h in self.hashes.items())

    def forget(self) -> None:
        """Remove its modules, so that the next file can import modules of the same names from its own
        folder."""
        for name, module in list(sys.modules.items()):
            if _file_of(module) in self.hashes:
                del sys.modules[name]
        if self.added and str(self.file.parent) in sys.path:
            sys.path.remove(str(self.file.parent))


_imported: list[_Imported] = []
"""Empty, or the study file that was imported last."""


def clear_caches() -> None:
    """Forget the study file that was imported last, and the modules of its folder."""
    while _imported:
        _imported.pop().forget()


def _neighbours(folder: Path, before: set[str]) -> dict[Path, str]:
    """File -> hash, for the modules of a folder that were imported and are not in `before`. Packages
    installed below the folder, as in a project with its environment, are left out."""
    files = {_file_of(m) for name, m in list(sys.modules.items()) if name not in before}
    return {
        file: _sha256(file)
        for file in files
        if file and file.is_relative_to(folder) and not _is_installed(file)
        if not any(file.is_relative_to(ours) for ours in OURS)
    }


def _file_of(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file) if isinstance(file, str) else None


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def _refuse_shadows(path: Path, file: Path) -> None:
    """Refuse a study file, or a module beside it, that would be imported instead of a library.

    Raises:
        UserError: naming the file.
    """
    elsewhere = [p for p in sys.path if Path(p or ".").resolve() != file.parent]
    found = PathFinder.find_spec(file.stem, elsewhere) if "." not in file.stem else None
    installed = found is not None and _is_installed(Path(found.origin or ""))
    if file.stem in {*NEEDED, *(p.name for p in OURS)} or installed:
        raise UserError(
            f"study file {path} has the name of the module {file.stem!r} and would be imported instead of "
            "it; rename the file"
        )
    beside = {
        p.stem if p.suffix == ".py" else p.name for p in file.parent.iterdir() if _importable(p)
    }
    if shadows := sorted(beside & NEEDED):
        raise UserError(
            f"study file {path} is in the same folder as {shadows[0]}.py, which would be imported instead of "
            f"the module {shadows[0]!r}; rename that file, or move the study file to a folder of its own"
        )


def _is_installed(file: Path) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(file.parts)


def _importable(path: Path) -> bool:
    return path.suffix == ".py" or (path / "__init__.py").is_file()


def _execute(path: Path, file: Path) -> ModuleType:
    # Pickle finds the file's classes by this name, here and wherever its folder is on the path.
    name = "study_file" if "." in file.stem else file.stem
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"study file {path}: {error}") from error
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise UserError(f"study file {_place_of(error, path, file)}") from error
    return module


def _place_of(error: BaseException, path: Path, file: Path) -> str:
    """The line of the study file, and of a module in its folder, at which an error occurred, and its
    message."""
    frames = traceback.extract_tb(error.__traceback__)
    mine = [f.lineno for f in frames if f.filename == str(file)]
    beside = [
        f for f in frames if Path(f.filename).parent == file.parent and f.filename != str(file)
    ]
    where = f"{path}:{mine[-1]}" if mine else str(path)
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename) == file:
        line = f":{error.lineno}" if error.lineno else ""  # none when the file is not UTF-8
        return f"{path}{line}: syntax error: {error.msg}"
    if isinstance(error, SyntaxError):
        source = Path(error.filename or "?").name
        return f"{where}: {source}:{error.lineno}: syntax error: {error.msg}"
    if beside and mine:
        where += f": {Path(beside[-1].filename).name}:{beside[-1].lineno}"
    return f"{where}: {type(error).__name__}: {error}{unknown_argument(error)}"


@contextlib.contextmanager
def names_of(space: str | Path | None, tags: Mapping[str, str]) -> Iterator[None]:
    """Make the strategies, backbones and targets that a study file defines known inside the block.

    Args:
        space: as of `study_path`, whose code is run; None if no file is needed.
        tags: tags of a run, among them the name of its study file.

    Raises:
        UserError: if the file cannot be read; also instead of UnknownName, with the option to add.
    """
    if space is not None:
        load_study(study_path(str(space)))
    try:
        yield
    except UnknownName as error:
        hint = f"if {tags.get('study_file', 'the study file')} defines it, add --space FILE"
        if space is not None:
            hint = f"{space} does not define it either"
        raise UserError(f"{error}; {hint}") from error


def slug(target: str) -> str:
    """A name for the study of that target: letters, digits and underscores."""
    inner = target.partition("[")[0]
    last = Path(inner.partition(":")[2] or inner).expanduser().resolve().stem
    return re.sub(r"\W+", "_", last, flags=re.ASCII).strip("_").lower()[:60] or "my_study"


def new_study_file(target: str, out: str | Path | None = None) -> Path:
    """The file to write a study for a target to: `out`, or one in studies/ that is named after the target.

    Raises:
        UserError: if it is no Python file, or exists.
    """
    path = Path(out or f"studies/{slug(target)}.py")
    if path.suffix != ".py" or not SAFE_NAME.fullmatch(path.stem):
        raise UserError(f"--out {path}: must be a file such as studies/my_study.py")
    if path.exists():
        raise UserError(f"{path} exists and is not overwritten; name another file with --out")
    return path


def study_sha256(path: Path) -> str:
    """SHA-256 of a study file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def study_text(path: Path) -> str:
    """Text of a study file, in the encoding that it declares (PEP 263)."""
    with tokenize.open(path) as file:
        return file.read()


def study_file_tags(path: Path) -> dict[str, str]:
    """Tags that identify the study file of a run: its name, without its folder, and its hash."""
    return {"study_file": path.name, "sha256.study_file": study_sha256(path)}


def study_docstring(path: Path) -> str:
    """The docstring of a study file: the question, the command, the answer."""
    return ast.get_docstring(ast.parse(path.read_bytes())) or ""
