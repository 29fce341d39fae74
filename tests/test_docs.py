"""The links, the code and the commands in the documentation work."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import report
from analysis.topics import TOPICS
from harness.core.spec import TrialSpec
from harness.core.study import Study
from harness.core.study_file import study_path
from harness.data import load_target
from harness.data.targets import LOADERS
from harness.search.space import first_draw
from harness.similarity import MEASURES
from harness.training.device import resolve_device
from harness.training.loop import start
from tests import made_studies as made
from tests.processes import ROOT
from tests.test_command import docs_hooks

PAGES = ROOT / "docs" / "pages"
FOR_READERS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
WRITTEN = [*FOR_READERS, ROOT / "benchmarks" / "README.md", *sorted(PAGES.glob("*.md"))]
NOTEBOOK = PAGES / "notebook.ipynb"


def text_of(page: Path) -> str:
    """A page with the files that it includes whole, and without its comments."""
    text = re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL)
    return re.sub(r'^--8<-- "([^":]+)"$', lambda m: (ROOT / m[1]).read_text(), text, flags=re.M)


NOT_RUN = "<!-- not run by test_docs"
BLOCK = re.compile(r"(^<!--[^\n]*\n)?^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def python_blocks(page: Path) -> list[str]:
    """The blocks that are run: all but those whose page says why not in the line before."""
    return [b for why, b in BLOCK.findall(page.read_text()) if not why.startswith(NOT_RUN)]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def parts() -> Iterator[Mapping[Path, dict[str, Any]]]:
    """What the blocks of each page define, run one after the other as one study file; what they add to the
    tables of targets and measures is taken out again."""
    tables: tuple[dict[str, Any], ...] = (LOADERS, MEASURES)
    before = [dict(table) for table in tables]
    defined = {}
    for page in WRITTEN:
        module = ModuleType("study_file")
        sys.modules["study_file"] = module  # timm and dataclasses look a module up by its name
        exec(compile("\n".join(python_blocks(page)), name_of(page), "exec"), vars(module))
        defined[page] = vars(module)
    yield defined
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)
    load_target.cache_clear()


def test_every_python_block_runs_and_the_studies_draw_a_trial_of_each_cell(
    parts: Mapping[Path, dict[str, Any]],
) -> None:
    studies = {page: defined["study"] for page, defined in parts.items() if "study" in defined}
    assert {"README.md", "tutorial.md"} <= {page.name for page in studies}
    for page, study in studies.items():
        assert isinstance(study, Study), name_of(page)
        for cell in study.cells():
            assert isinstance(first_draw(study, cell), TrialSpec), name_of(page)


def test_what_the_other_blocks_import_is_there() -> None:
    found = [(p, b) for p in WRITTEN for why, b in BLOCK.findall(p.read_text()) if why]
    assert found
    for page, block in found:
        lines = [x for x in block.splitlines() if x.startswith(("import ", "from "))]
        assert lines, name_of(page)
        exec(compile("\n".join(lines), name_of(page), "exec"), {})


def test_the_parts_of_the_how_to_are_short_and_work_together_in_one_trial(
    parts: Mapping[Path, dict[str, Any]],
) -> None:
    blocks = python_blocks(PAGES / "howto.md")
    assert len(blocks) == 6
    assert all(len([x for x in block.splitlines() if x.strip()]) <= 20 for block in blocks)
    spec = TrialSpec(
        target="stripes",
        backbone="slim_resnet",
        strategy=parts[PAGES / "howto.md"]["UpperHalf"](),
        source="scratch",
        shots=10,
        val_shots=5,
        test_shots=5,
        resolution=32,
        epochs=1,
        batch_size=16,
    )
    fit = start(spec, resolve_device("cpu"))
    list(fit)
    result = fit.finish(test=True)  # the audit raises if what was frozen moved
    assert result.outcome == "complete"
    assert result.metrics["trained_depth"] == 0.5


def test_the_measure_of_the_how_to_is_the_share_of_variance_between_classes(
    parts: Mapping[Path, dict[str, Any]],
) -> None:
    x = np.array([[0.0], [2.0], [4.0], [6.0]])  # means 1 and 5: variance 4 of 5 in all
    labels = np.array([0, 0, 1, 1])
    found = MEASURES["spread"](features=x, labels=labels, seed=0, resamples=0)
    assert found.value == pytest.approx(4 / 5)


def test_the_plot_of_the_how_to_is_drawn_in_the_report(
    parts: Mapping[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = parts[PAGES / "howto.md"]["section"]
    monkeypatch.setattr("analysis.topics.TOPICS", (*TOPICS, section))
    rows = [
        made.trial(cell, "repeat", i, 0.5 + i / 10) for cell in ("probe", "full") for i in range(3)
    ]
    page = report.build(made.table(rows), tmp_path)
    assert "Accuracy by seed" in page.read_text()
    assert (page.parent / "figures" / "seeds.png").stat().st_size > 1000
    assert len(pd.read_csv(page.parent / "tables" / "seeds.csv")) == 6


def test_the_command_of_the_how_to_counts_and_explains_itself(
    parts: Mapping[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    main = parts[PAGES / "howto.md"]["main"]
    assert main(["--target", "stripes"]) == 0
    assert capsys.readouterr().out == "Counter({'across': 60, 'down': 60})\n"
    assert main(["--target", "strips"]) == 2
    assert "unknown target 'strips'; did you mean" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "name of the data set" in capsys.readouterr().out


@pytest.mark.parametrize("page", [*FOR_READERS, ROOT / "benchmarks" / "README.md"], ids=name_of)
def test_relative_links_of_pages_outside_the_site_point_to_files(page: Path) -> None:
    # `make docs` checks those of the site, anchors included.
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text)
    missing = [x for x in links if "://" not in x and not (page.parent / x).exists()]
    assert missing == []


COMMAND = re.compile(r"python -m ((?:harness|analysis)(?:\.\w+)+)((?: (?!#)[^\s`|;)]+)*)")


def test_every_command_shown_is_one_and_knows_its_options() -> None:
    hooks = docs_hooks()
    known = {name: hooks.help_of(name) for name in hooks.commands()}
    assert "harness.study" in known
    shown = [(p, *m) for p in WRITTEN for m in COMMAND.findall(text_of(p))]
    assert len(shown) > 20
    for page, name, rest in shown:
        assert name in known, f"{name_of(page)}: there is no python -m {name}"
        for option in re.findall(r"(?<= )--[\w-]+", rest):
            assert re.search(rf"{option}\b(?!-)", known[name]), f"{name_of(page)}: {name} {option}"


def test_every_make_target_shown_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = {x for p in WRITTEN for x in re.findall(r"(?:`|^    )make ([a-z-]+)", text_of(p), re.M)}
    assert shown
    assert shown <= targets


def test_every_study_file_shown_exists() -> None:
    shown = {x for p in WRITTEN for x in re.findall(r"--space (studies/\S+\.py)", text_of(p))}
    made = {x for p in WRITTEN for x in re.findall(r"^wrote (studies/\S+\.py)", text_of(p), re.M)}
    shown -= made  # by a command of the page
    assert shown
    assert [x for x in shown if not (ROOT / x).is_file()] == []


def test_a_shipped_study_is_found_by_its_name_anywhere_and_a_file_of_that_name_goes_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = (ROOT / "studies" / "freeze_depth.py").resolve()
    assert study_path("freeze_depth").resolve() == shipped
    assert study_path("studies/freeze_depth.py").resolve() == shipped
    assert study_path("mine/freeze_depth.py") == Path("mine/freeze_depth.py")
    Path("freeze_depth.py").touch()
    assert study_path("freeze_depth.py") == Path("freeze_depth.py")
    assert study_path("nothing_here") == Path("nothing_here")


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # raises on the first cell that fails
    kinds = {k for c in notebook.cells for o in c.get("outputs", []) for k in o.get("data", {})}
    assert {"text/html", "image/png"} <= kinds, "a table and a figure"


def test_the_notebook_holds_the_outputs_of_all_its_cells_in_order() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    counts = [c["execution_count"] for c in cells if c["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert str(Path.home()) not in NOTEBOOK.read_text()
    assert sys.prefix not in NOTEBOOK.read_text()


def test_every_fault_is_shown_by_tests_that_exist() -> None:
    lines = (ROOT / "docs" / "pages" / "faults.md").read_text().splitlines()
    rows = [line for line in lines if re.match(r"\| \d+ \|", line)]
    assert [int(row.split("|")[1]) for row in rows] == list(range(1, 33))
    for row in rows:
        tests = re.findall(r"`(\w+\.py)::(\w+)`", row)
        assert tests, row
        for file, test in tests:
            assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text(), test
