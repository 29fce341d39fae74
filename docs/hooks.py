"""Hooks of the documentation site: they insert the --help of every command and the figure of the benchmarks.

    mkdocs build --strict -f docs/mkdocs.yml

The line `<!-- commands -->` in a page is replaced with the help of all commands.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {"images/peers.png": ROOT / "benchmarks" / "results" / "plot.png"}
"""Path in the site -> file of the project."""
COMMANDS = "<!-- commands -->"


def commands() -> list[str]:
    """Modules that can be run with `python -m`: those that parse a command line."""
    files = [*ROOT.glob("harness/*.py"), *ROOT.glob("harness/*/__main__.py")]
    files += ROOT.glob("analysis/*.py")
    found = [f.relative_to(ROOT) for f in files if "\nmain = command(" in f.read_text()]
    return sorted(".".join(f.with_suffix("").parts).removesuffix(".__main__") for f in found)


def help_of(command: str) -> str:
    """Output of `python -m COMMAND --help`.

    Raises:
        ImportError: if there is no such module.
    """
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    name = f"{command}.__main__" if (ROOT / command.replace(".", "/")).is_dir() else command
    said, before = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            importlib.import_module(name).main(["--help"])
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    return said.getvalue()


def on_files(files: Any, config: Any) -> Any:
    """Add the files from outside docs/pages."""
    from mkdocs.structure.files import File

    for place, file in ELSEWHERE.items():
        files.append(File.generated(config, place, abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with the help of all commands instead of the line COMMANDS."""
    if COMMANDS not in markdown:
        return markdown
    parts = [f"## python -m {name}\n\n```text\n{help_of(name)}```\n" for name in commands()]
    return markdown.replace(COMMANDS, "\n".join(parts))
