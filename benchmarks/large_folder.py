"""Time, reads and memory for indexing and splitting a folder of 200,000 images.

    python -m benchmarks.large_folder --images 200000

Prints one line of JSON: seconds to index and split, MiB that this process read from files in that time, and
MiB by which its memory grew. The files are links to a few small files, which is the same work for an index.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

from PIL import Image

from benchmarks.data import scratch
from harness import strategies
from harness.core.spec import TrialSpec
from harness.data import load_target, split_indices

CLASSES = 100
MIB = 2**20


def make_folder(images: int) -> Path:
    """A folder of CLASSES classes with `images` tiny PNG files in total, created if it is absent."""
    folder = scratch() / f"large-{images}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unfinished-"))
    try:
        for label in range(CLASSES):
            into = unfinished / f"class{label:03d}"
            into.mkdir()
            # One file per class, because file systems limit the number of links to a file.
            first = into / "image000000.png"
            Image.new("RGB", (8, 8), (label, 0, 0)).save(first)
            for number in range(1, images // CLASSES):
                os.link(first, into / f"image{number:06d}.png")
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def resident_mib() -> float:
    """Current memory of this process."""
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def read_mib() -> float:
    """MiB that this process has read so far, from cache or disk."""
    found = re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())
    assert found is not None
    return int(found[1]) / MIB


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_folder")
    parser.add_argument("--images", type=int, default=200_000)
    images = parser.parse_args().images
    spec = TrialSpec(
        target=f"folder:{make_folder(images)}",
        backbone="tf_efficientnet_lite0",
        strategy=strategies.LinearProbe(),
    )
    memory, read, start = resident_mib(), read_mib(), time.perf_counter()
    target = load_target(spec.target)
    indexed = time.perf_counter()
    split = split_indices(target, spec)
    line = {
        "images": len(split.train) + len(split.val) + len(split.test),
        "seconds": time.perf_counter() - start,
        "index_seconds": indexed - start,
        "read_mib": read_mib() - read,
        "grown_mib": resident_mib() - memory,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
