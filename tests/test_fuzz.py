"""Files from strangers: whatever is in them, they are read or refused in one line; nothing else may come out.

python -m pytest tests/test_fuzz.py -m slow     # for minutes; a few examples of each are always run
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from analysis.load.external import load_measures, load_table
from analysis.load.mapping import read_mapping
from harness.backbones.weights import read_weights
from harness.core.errors import UserError
from harness.data import load_target, open_image

EXAMPLES = pytest.mark.parametrize(
    "examples", [12, pytest.param(1000, marks=pytest.mark.slow)], ids=["few", "many"]
)


def picture(kind: str, mode: str = "RGB") -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (9, 7, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(out, kind)
    return out.getvalue()


def weights(legacy: bool) -> bytes:
    out = io.BytesIO()
    state = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)}
    torch.save(state, out, _use_new_zipfile_serialization=not legacy)
    return out.getvalue()


def parquet() -> bytes:
    out = io.BytesIO()
    pd.DataFrame({"source": ["a", "b"], "score": ["0.1", "0.2"]}).to_parquet(out)
    return out.getvalue()


SEEDS: dict[str, list[bytes]] = {
    "image": [
        *(
            picture(kind)
            for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF", "ICO")
        ),
        *(picture(kind) for kind in ("JPEG2000", "QOI", "SGI", "DDS")),
        *(picture("PNG", mode) for mode in ("P", "LA", "RGBA", "1", "I;16")),
        picture("TIFF", "CMYK"),
        picture("TIFF", "F"),
    ],
    "weights.pt": [weights(False), weights(True), pickle.dumps({"a": [1, 2]})],
    "weights.safetensors": [save({"a": torch.arange(6.0), "b": torch.ones(2, 2)})],
    "target.csv": [
        b"image,label,split\na.png,x,train\nb.png,y,test\n",
        b'image,label\n"a.png",x\n',
        "sep=;\nfile;species;group\nC:\\x\\a.png;1.0;p\nb;2;q\n".encode("utf-16"),
        pd.DataFrame({"path": ["a.png", "b.png"], "class": [1, 2]}).to_parquet(),
    ],
    "trials.csv": [b"source,score\na,0.1\nb,0.2\n", b'source,score\n"a ""b""",1e-3\n,\n'],
    "trials.parquet": [parquet()],
    "measures.csv": [b"source,target,fid\na,b,0.1\nb,c,-2e5\n"],
    "mapping.toml": [
        b'factors = ["source"]\ntest = "score"\npercent = true\n',
        b"preset = 'wandb'",
    ],
    "mapping.json": [json.dumps({"factors": {"a": "b"}, "test": "score"}).encode()],
}


def read_trials(path: Path) -> object:
    mapping = path.with_name("good.toml")
    mapping.write_text('factors = ["source"]\ntest = "score"\n')
    return load_table(path, read_mapping(mapping))


def read_target(path: Path) -> object:
    load_target.cache_clear()
    for name in "ab":
        path.with_name(f"{name}.png").write_bytes(picture("PNG"))
    target = load_target(f"csv:{path}")
    return target.fingerprint()


READERS: dict[str, Callable[[Path], object]] = {
    "image": open_image,
    "weights": read_weights,
    "target": read_target,
    "trials": read_trials,
    "measures": load_measures,
    "mapping": read_mapping,
}


@st.composite
def spoilt(draw: st.DrawFn, kind: str) -> bytes:
    """A good file with some bytes changed, put in, left out or cut off; or no such file at all."""
    content = bytearray(draw(st.sampled_from([*SEEDS[kind], b""])))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(content)))
        piece = draw(
            st.binary(max_size=6) | st.sampled_from([b"\0", b"\xff" * 4, b"\n", b",", b'"'])
        )
        match draw(st.sampled_from(["change", "insert", "remove", "cut"])):
            case "change":
                content[at : at + len(piece)] = piece
            case "insert":
                content[at:at] = piece
            case "remove":
                del content[at : at + len(piece)]
            case "cut":
                del content[at:]
    return bytes(content)


@EXAMPLES
@pytest.mark.parametrize("kind", SEEDS)
@pytest.mark.filterwarnings("ignore")  # libraries may warn of what is odd and can be read
def test_a_spoilt_file_is_read_or_refused_in_one_line(
    kind: str, examples: int, tmp_path: Path
) -> None:
    reader = READERS[kind.partition(".")[0]]

    @settings(
        max_examples=examples,
        derandomize=examples < 100,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(spoilt(kind))
    def check(content: bytes) -> None:
        path = tmp_path / kind
        path.write_bytes(content)
        try:
            reader(path)
        except UserError as error:
            assert "\n" not in str(error).strip()  # noqa: PT017 # either is fine

    check()


@pytest.mark.parametrize("kind", SEEDS)
def test_files_that_were_not_spoilt_can_be_read(kind: str, tmp_path: Path) -> None:
    if kind in ("target.csv", "mapping.toml"):
        return  # the second seed of each is refused on purpose
    path = tmp_path / kind
    path.write_bytes(SEEDS[kind][0])
    READERS[kind.partition(".")[0]](path)
