"""LSTM and GRU on texts from scratch, as any other backbone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from harness.backbones import build
from harness.backbones.wheels import MINILM
from harness.core.strategies import FullFineTune, GradualUnfreezing
from harness.deploy.onnx import write_onnx
from harness.training.forecast import forecast
from tests.live_memory import inputs_of, loop_peaks
from tests.refusals import refused
from tests.trials import MakeSpec, check_caching, export

pytestmark = pytest.mark.skipif(MINILM.file() is None, reason="its tokenizer is not installed")

NAMES = ["text_lstm", "text_gru"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two classes of texts that have no word in common."""
    folder = tmp_path_factory.mktemp("texts")
    draw = np.random.default_rng(0)
    for words in ("red green blue yellow", "cat dog bird horse"):
        place = folder / words.partition(" ")[0]
        place.mkdir()
        for number in range(24):
            text = " ".join(draw.choice(words.split(), draw.integers(3, 9)))
            (place / f"{number:02}.txt").write_text(text)
    return f"folder:{folder}[tokens=8]"


@pytest.mark.parametrize("name", NAMES)
def test_padding_does_not_matter(name: str) -> None:
    network = build(name, "scratch", 3, 0)
    kind = name.removeprefix("text_")
    groups = [group.name for group in network.groups]
    assert groups == ["embedding", f"{kind}0", f"{kind}1", "head"]
    rows = network.input.random(4, torch.Generator().manual_seed(0))
    rows[:, 1, 100:] = 0
    changed = rows.clone()
    changed[:, 0, 100:] = 1000
    model = network.model.eval()
    with torch.no_grad():
        wanted = model(network.prepared(rows))
        assert torch.equal(model(network.prepared(changed)), wanted)
        changed[:, 0, 0] = 1000
        assert not torch.allclose(model(network.prepared(changed)), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_from_scratch(name: str, make_spec: MakeSpec, texts: str, tmp_path: Path) -> None:
    """With and without cached layers, and twice the same bit for bit."""
    fields = {"target": texts, "backbone": name, "resolution": None, "lr": 1e-2, "shots": 10}
    spec = make_spec(**fields, strategy=FullFineTune(), epochs=4, batch_size=8)
    assert check_caching(spec, rtol=0).metrics["test_accuracy"] == 1
    check_caching(make_spec(**fields, strategy=GradualUnfreezing(every=1), epochs=3), rtol=2e-5)


def test_memory_is_that_of_live_tensors(make_spec: MakeSpec, texts: str) -> None:
    spec = make_spec(target=texts, backbone="text_lstm", resolution=None, batch_size=8)
    train, _ = loop_peaks(spec, inputs_of(spec), classes=2)
    assert forecast(spec).train_peak_mib == pytest.approx(train, rel=0.02)


def test_its_onnx_file_gives_the_same_logits(tmp_path: Path) -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    network = build("text_lstm", "scratch", 3, 0)
    model = export(network, "text_lstm", ("a", "b", "c"), tmp_path / "model")
    rows = network.input.random(4, torch.Generator().manual_seed(0))
    assert write_onnx(model, tmp_path, rows) < 1e-5


def test_what_does_not_suit_it_is_refused() -> None:
    with refused("text_lstm has no pretrained weights"):
        build("text_lstm", "pretrained", 2, 0)
