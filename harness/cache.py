"""What is kept of frozen layers and decoded images on this machine, and how to be rid of it?

    python -m harness.cache
    python -m harness.cache --empty

Nothing in it is needed: whatever is deleted is computed again when a trial asks for it.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from harness.spec import UserError, run_command


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.cache",
        description="List what is kept of frozen layers and decoded images, or delete it.",
    )
    parser.add_argument("--cache-dir", type=Path, help="the folder (default: in the user's cache)")
    parser.add_argument("--empty", action="store_true", help="delete every entry")
    arguments = parser.parse_args(argv)
    return run_command(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Everything after the command line has been read.

    Raises:
        UserError: if the folder named does not exist.
    """
    from harness.rows import Cache, default_folder, in_words

    folder = arguments.cache_dir or default_folder()
    if arguments.cache_dir and not folder.is_dir():
        raise UserError(f"--cache-dir {folder} is not a folder")
    cache = Cache(folder)
    entries = cache.entries()
    total = in_words(sum(entry.size for entry in entries))
    if arguments.empty:
        print(f"deleted {cache.empty()} entries, {total}, from {folder}")
        return 0
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        print(f"{in_words(entry.size):>9}  last used {used}  {entry.what}")
    print(f"{len(entries)} entries, {total}, in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
