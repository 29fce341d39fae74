"""Names of a package that are loaded when they are first used (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from harness.core.caller import undisturbed


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package. Its stub, __init__.pyi, is the only list of its names, which
    type checkers read as it is. A line "from MODULE import NAME as NAME" offers a name; "from MODULE import
    THERE" and "NAME = THERE" offer it under another one.

    Args:
        package: name of the package, which is being imported.
    """
    stub = Path(str(sys.modules[package].__file__)).with_suffix(".pyi")

    @cache
    def origins() -> dict[str, tuple[str, str]]:
        """Name -> its module, and its name there."""
        import ast  # `import harness` is quick without it

        offered, imported = dict[str, tuple[str, str]](), dict[str, tuple[str, str]]()
        for line in ast.parse(stub.read_text(encoding="utf-8")).body:
            match line:
                case ast.ImportFrom(module=str(module), names=[ast.alias(name=there, asname=name)]):
                    imported[there] = module, there
                    offered |= {name: (module, there)} if name else {}
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Name(id=there)):
                    offered[name] = imported[there]
        return offered

    @undisturbed()
    def getattr_(name: str) -> Any:
        if name == "__all__":
            return list(origins())
        if name not in origins():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, there = origins()[name]
        return getattr(__import__(module, fromlist=[there]), there)  # `there` may be a module too

    return getattr_, lambda: sorted({*vars(sys.modules[package]), *origins()})
