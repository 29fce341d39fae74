"""A study file is imported as by `python FILE`: once, with its folder on the path, under its own name."""

from __future__ import annotations

import contextlib
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.core.study import Study
from harness.core.study_file import clear_caches, load_study, run_file
from tests.processes import environment, output_of, python
from tests.refusals import refused
from tests.study_files import study_text

STUDY = '"""Toy."""\nfrom my_parts import probe\n'
STUDY += study_text({"a": "probe()"}).partition("\n")[2]
PARTS = "from harness import strategies\nprobe = strategies.LinearProbe\n"


@pytest.fixture(autouse=True)
def forget_study_files() -> Iterator[None]:
    clear_caches()  # one that an earlier test has read
    before = list(sys.path)
    yield
    clear_caches()
    assert sys.path == before


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "proj"
    folder.mkdir()
    (folder / "sibling.py").write_text(STUDY)
    (folder / "my_parts.py").write_text(PARTS)
    return folder


# --- what is in it ----------------------------------------------------------------------------------

GOOD = """from harness import Study
study = Study(compare={"strategy": ["a"]}, space=print)
"""


def read(folder: Path, before: str, encoding: str = "utf-8") -> Study:
    (folder / "toy.py").write_bytes((before + GOOD).encode(encoding))
    return load_study(folder / "toy.py")


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("import sys\nsys.exit(0)\n", r"toy\.py:2: SystemExit: 0"),
        ("\nb = bytearray(2**62)\n", r"toy\.py:2: MemoryError"),
        (
            "from harness import Study\nStudy(compair={})\n",
            r"toy\.py:2: .*; did you mean compare\?",
        ),
        ("def f():\n    f()\nf()\n", r"toy\.py:2: RecursionError"),
    ],
    ids=["exits", "memory", "misspelt", "recursion"],
)
def test_study_file_that_would_end_the_command_is_refused(
    before: str, said: str, tmp_path: Path
) -> None:
    with refused(f"^study file .*{said}"):
        read(tmp_path, before)


@pytest.mark.slow
def test_ctrl_c_ends_a_study_file_that_loops(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text("print('loops', flush=True)\nwhile True:\n    pass\n")
    command = [sys.executable, "-m", "harness.study", "--space", "toy.py"]
    pipe: Any = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=pipe, stderr=pipe, text=True
    ) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "loops\n"
            running.send_signal(signal.SIGINT)
            _, said = running.communicate(timeout=30)
        finally:
            running.kill()  # it would loop forever where Ctrl-C is ignored
    assert (running.returncode, said.partition(";")[0]) == (130, "stopped by Ctrl-C")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_study_file_may_have_a_byte_order_mark_but_is_utf_8(encoding: str, tmp_path: Path) -> None:
    fine = encoding == "utf-8-sig"
    with contextlib.nullcontext() if fine else refused("^study file .*null bytes"):
        assert read(tmp_path, "a = 'ä'\r\n", encoding).name == "toy"


# --- modules beside it -----------------------------------------------------------------------------


@pytest.mark.slow
def test_module_beside_the_file_is_imported_wherever_the_command_is_typed(
    project: Path, tmp_path: Path
) -> None:
    options = ["--space", "proj/sibling.py", "--device", "cpu"]
    for command in (["harness.study"], ["harness.export", "--study", "sibling"]):
        done = python("-m", *command, *options, folder=tmp_path)
        assert done.returncode == 0, done.stderr


def test_package_beside_the_file_is_imported_late_too(project: Path) -> None:
    (project / "late").mkdir()
    (project / "late" / "__init__.py").write_text("from late import part\n")
    (project / "late" / "part.py").write_text("value = 3\n")
    text = STUDY.replace(
        "    return", "    import late\n    assert late.part.value == 3\n    return"
    )
    (project / "sibling.py").write_text(text)
    load_study(project / "sibling.py").space(None, strategy="a")


def test_modules_of_two_folders_that_share_a_name_are_told_apart(
    project: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "sibling.py").write_text(STUDY)
    (other / "my_parts.py").write_text(PARTS.replace("LinearProbe", "FullFineTune"))
    found = [
        load_study(folder / "sibling.py").space(None, strategy="a").strategy
        for folder in (project, other, project)
    ]
    assert [type(s).__name__ for s in found] == ["LinearProbe", "FullFineTune", "LinearProbe"]


@pytest.mark.parametrize("changed", ["sibling.py", "my_parts.py"])
def test_file_is_imported_once_until_it_or_a_module_beside_it_changes(
    changed: str, project: Path
) -> None:
    first = run_file(project / "sibling.py")
    assert run_file(project / "sibling.py")["study"] is first["study"]
    with (project / changed).open("a") as file:
        file.write("\n# edited in a notebook\n")
    assert run_file(project / "sibling.py")["study"] is not first["study"]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ("\n1 / 0\n", r"sibling\.py:2: my_parts\.py:2: ZeroDivisionError: division by zero"),
        ("\n\nprobe = = 3\n", r"sibling\.py:2: my_parts\.py:3: syntax error: invalid syntax"),
        ("def probes(): pass\n", r"sibling\.py:2: ImportError: cannot import name 'probe' .*"),
    ],
    ids=["raises", "syntax", "lacks a name"],
)
def test_error_in_a_module_beside_the_file_is_named_with_its_line(
    parts: str, said: str, project: Path
) -> None:
    (project / "my_parts.py").write_text(parts)
    with refused(rf"\Astudy file .*{said}\Z"):
        load_study(project / "sibling.py")
    (project / "my_parts.py").write_text(PARTS)
    assert load_study(project / "sibling.py").name == "sibling"


# --- its name --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sibling", "two words", "2026-study"])
def test_classes_of_the_file_can_be_pickled(name: str, project: Path) -> None:
    file = project / f"{name}.py"
    file.write_text(STUDY.replace("study =", "class Mine:\n    pass\nstudy ="))
    mine = run_file(file)["Mine"]
    kept = pickle.dumps(mine)
    assert pickle.loads(kept) is mine
    code = f"import pickle, sys; sys.path[:] = {sys.path!r}; print(pickle.loads({kept!r}).__name__)"
    assert output_of("-c", code) == "Mine"


@pytest.mark.parametrize(
    "name", ["optuna", "timm", "random", "harness", "analysis", "click", "csv"]
)
def test_file_that_has_the_name_of_another_module_is_refused(name: str, project: Path) -> None:
    file = (project / "sibling.py").rename(project / f"{name}.py")
    with refused(rf"has the name of the module '{name}'.*rename the file\Z"):
        load_study(file)


@pytest.mark.parametrize("name", ["torch.py", "types.py", "mlflow"])
def test_file_beside_a_module_with_the_name_of_a_library_is_refused(
    name: str, project: Path
) -> None:
    if name.endswith(".py"):
        (project / name).touch()
    else:
        (project / name).mkdir()
        (project / name / "__init__.py").touch()
    with refused(f"in the same folder as {name.removesuffix('.py')}"):
        load_study(project / "sibling.py")


def test_folders_with_the_names_of_libraries_do_no_harm(project: Path) -> None:
    for name in ("torch", "data", "random", "site-packages"):
        (project / name).mkdir()
    assert load_study(project / "sibling.py").name == "sibling"


@pytest.mark.parametrize(
    "name",
    ["random", *(pytest.param(n, marks=pytest.mark.slow) for n in ("optuna", "timm", "string"))],
)
def test_commands_say_so_in_one_line_where_the_current_folder_holds_such_a_file(
    name: str, project: Path
) -> None:
    (project / "sibling.py").rename(project / f"{name}.py")
    done = python("-m", "harness.study", "--space", f"{name}.py", folder=project)
    assert done.returncode == 2
    assert re.fullmatch(rf"error: study file {name}\.py has the name of .*\n", done.stderr)


def test_file_with_a_librarys_name_in_the_current_folder_does_not_break_other_commands(
    project: Path,
) -> None:
    (project / "random.py").write_text("1 / 0\n")
    for words in (["harness.status"], ["analysis.report"], ["analysis.recommend"]):
        done = python("-m", *words, "--study", "none", folder=project)
        assert done.returncode == 2
        assert re.fullmatch("error: .*no (tracking (store|database)|file).*\n", done.stderr), (
            done.stderr
        )
