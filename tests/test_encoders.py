"""Encoders of texts from the library transformers: equal to the library, and used as any other backbone."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from harness.backbones import build
from harness.backbones.wheels import MINILM
from harness.core.spec import TrialSpec
from harness.core.strategies import (
    BiasOnly,
    DiscriminativeLR,
    FullFineTune,
    GradualUnfreezing,
    LastBlock,
    LinearProbe,
    LoRA,
    Strategy,
)
from harness.data import load_target
from harness.data.cached import Cache
from harness.deploy.model import open_model, plain_network
from harness.inputs import Tokens
from harness.training.device import Cpu
from harness.training.forecast import forecast
from harness.training.inference_cost import inference_cost
from tests.encoders import (
    WORDS,
    check,
    pooled,
    refused_network,
    save_encoder,
    save_sound_encoder,
)
from tests.live_memory import inputs_of, loop_peaks
from tests.refusals import refused
from tests.trials import MakeSpec, check_caching, export, run, values

transformers = pytest.importorskip("transformers")
has_minilm = pytest.mark.skipif(MINILM.file() is None, reason="the wheel is not installed")

RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
KINDS: dict[str, dict[str, Any]] = {
    "bert": {},
    "distilbert": {},
    "roberta": {},
    "electra": {"embedding_size": 12},
    "mpnet": {},
    "deberta": {**RELATIVE, "max_relative_positions": -1},
    "deberta-v2": {
        **RELATIVE,
        "position_buckets": 4,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "modernbert": {"local_attention": 4, "global_attn_every_n_layers": 2},
}
STRATEGIES = [
    LinearProbe(),
    LastBlock(),
    FullFineTune(),
    DiscriminativeLR(decay=0.7),
    GradualUnfreezing(every=1),
    LoRA(rank=2),
    BiasOnly(),
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_encoder(tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two classes of texts of 2 to 13 words, of which each has words that the other has not."""
    folder = tmp_path_factory.mktemp("texts")
    draw = np.random.default_rng(0)
    for name, words in (("first", WORDS[:10]), ("second", WORDS[6:])):
        (folder / name).mkdir()
        for number in range(14):
            text = " ".join(draw.choice(words, draw.integers(2, 14)))
            (folder / name / f"{number:02}.txt").write_text(text)
    return f"folder:{folder}[tokens=12]"


def library_tokens(folder: Path | str, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of the library's own model for each token, and the mask, (n, tokens, 1)."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    ids, mask = rows.long().unbind(1)
    with torch.no_grad():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return hidden, mask[:, :, None]


@pytest.mark.parametrize("kind", KINDS)
def test_parts_together_are_the_librarys_model(kind: str, tmp_path: Path) -> None:
    name = save_encoder(tmp_path, kind, **KINDS[kind])
    network = build(name, "pretrained", 4, 0)
    assert isinstance(network.input, Tokens)
    rows = network.input.random(5, torch.Generator().manual_seed(1))
    hidden, mask = library_tokens(tmp_path, rows)
    assert len(set(mask.sum(1).flatten().tolist())) > 1
    found = pooled(network, rows)
    torch.testing.assert_close(found, (hidden * mask).sum(1) / mask.sum(1), rtol=0, atol=1e-5)
    first = pooled(build(f"{name}[pool=cls]", "pretrained", 4, 0), rows)
    torch.testing.assert_close(first, hidden[:, 0], rtol=0, atol=1e-5)
    assert float((found - first).abs().max()) > 1e-2
    groups = [group.name for group in network.groups]
    assert groups == ["embeddings", "layer0", "layer1", "layer2", "head"]


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "modernbert"])
def test_every_group_is_a_place_to_divide_it(
    kind: str, make_spec: MakeSpec, texts: str, tmp_path: Path
) -> None:
    """A strategy that keeps the first groups frozen takes them from the cache, and learns the same."""
    name = save_encoder(tmp_path, kind, **KINDS[kind])
    spec = spec_of(make_spec, texts, name, strategy=GradualUnfreezing(every=1), epochs=3)
    _, cut, result = run(spec, Cache())
    np.testing.assert_allclose(values(cut), values(run(spec)[1]), rtol=2e-5)
    kept = result.notes["prefix"]
    assert {"kept after pool", "kept after layer1", "kept after layer0"} == {
        part.partition(",")[0] for part in kept.split("; ")
    }


@has_minilm
def test_sentence_embeddings_of_minilm_are_those_of_the_library() -> None:
    file = MINILM.file()
    assert file is not None
    network = build("minilm", "pretrained", 2, 0)
    assert isinstance(network.input, Tokens)
    sentences = ["A cat sleeps.", "the stock market fell sharply after the announcement", "Hello"]
    rows = torch.stack([network.input.row(text) for text in sentences])
    hidden, mask = library_tokens(file.parent, rows)
    own = transformers.AutoTokenizer.from_pretrained(file.parent)(sentences)["input_ids"]
    assert [row[0][row[1] > 0].tolist() for row in rows] == own
    found = pooled(network, rows)
    torch.testing.assert_close(found, (hidden * mask).sum(1) / mask.sum(1), rtol=0, atol=1e-5)
    assert [group.name for group in network.groups] == [
        "embeddings",
        *(f"layer{i}" for i in range(6)),
        "head",
    ]
    assert sum(p.numel() for p in network.model.parameters()) == 22_565_376 + 2 * 385


def spec_of(make_spec: MakeSpec, texts: str, name: str, **changes: Any) -> TrialSpec:
    fields = {"target": texts, "backbone": name, "resolution": None, "source": "pretrained"}
    return make_spec(**{**fields, "lr": 1e-2, "augment": "none", **changes})


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategies_train_it_with_and_without_cached_layers(
    strategy: Strategy, make_spec: MakeSpec, texts: str, bert: str
) -> None:
    check_caching(spec_of(make_spec, texts, bert, strategy=strategy, epochs=3), rtol=2e-5)


@pytest.mark.parametrize(
    ("head", "depth"), [("linear", 2), ("mlp", None), ("attentive", None), ("attentive", 2)]
)
def test_heads_on_any_depth_do_not_see_the_padding(head: Any, depth: int | None, bert: str) -> None:
    network = build(bert, "pretrained", 3, 0, head=head, depth=depth)
    rows = network.input.random(6, torch.Generator().manual_seed(0))
    model = network.model.eval()
    with torch.no_grad():
        wanted = model(network.prepared(rows))
        for row, logits in zip(rows, wanted, strict=True):
            length = int(row[1].sum())
            alone = model(network.prepared(row[None, :, :length]))
            torch.testing.assert_close(alone[0], logits, rtol=0, atol=1e-5)
    assert float(wanted.std(0).min()) > 1e-3


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [*(("bert", strategy) for strategy in STRATEGIES), ("deberta-v2", FullFineTune())],
)
@pytest.mark.slow
def test_memory_is_that_of_live_tensors(
    kind: str,
    strategy: Strategy,
    make_spec: MakeSpec,
    texts: str,
    tmp_path: Path,
) -> None:
    name = save_encoder(tmp_path, kind, **KINDS[kind])
    spec = spec_of(make_spec, texts, name, strategy=strategy, batch_size=8, epochs=3)
    train, _ = loop_peaks(spec, inputs_of(spec), classes=2)
    assert forecast(spec).train_peak_mib == pytest.approx(train, rel=0.02)


def test_adapters_are_in_all_linear_layers_of_attention(bert: str) -> None:
    network = build(bert, "pretrained", 2, 0, lora_rank=2)
    adapted = {n.split(".lora_")[0] for n in network.tuned_names("lora") if ".lora_" in n}
    inside = ("self.query", "self.key", "self.value", "output.dense")
    assert adapted == {f"layer{i}.block.attention.{n}" for i in range(3) for n in inside}
    rows = network.input.random(3, torch.Generator().manual_seed(0))
    plain = pooled(build(bert, "pretrained", 2, 0), rows)
    torch.testing.assert_close(pooled(network, rows), plain, rtol=0, atol=1e-6)
    for parameter in network.model.parameters():
        parameter.data += 0.05
    wanted = network.model(network.prepared(rows))
    merged = plain_network(network, None)
    torch.testing.assert_close(merged(network.prepared(rows)), wanted, rtol=0, atol=1e-4)


def test_operations_are_counted(bert: str, texts: str) -> None:
    form = load_target(texts).medium.form(build(bert, "scratch", 2, 0).input)
    tokens, width = 12, 16
    layer = tokens * (4 * width * width + 2 * width * 24) + 2 * tokens * tokens * width
    assert inference_cost(bert, 5, None, Cpu(), form)["multiply_adds"] == 3 * layer + width * 5


# --- bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_models_that_generate_text_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(kind)
    config.save_pretrained(tmp_path)
    refused_network(
        f"transformers:{tmp_path}", f"of type {kind}, which is not a text or sound encoder"
    )


def test_models_whose_layers_share_weights_are_refused(tmp_path: Path) -> None:
    name = save_encoder(tmp_path, "albert", embedding_size=8)
    refused_network(name, "albert has no list of layers, or its layers share weights")


def test_a_folder_without_a_tokenizer_or_a_model_is_refused(bert: str, tmp_path: Path) -> None:
    name = save_encoder(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    refused_network(
        name, r"has no tokenizer: .*tokenizer.json cannot be read; save that of transformers"
    )
    (tmp_path / "empty").mkdir()
    refused_network(
        f"transformers:{tmp_path / 'empty'}", "has no config.json of a model of transformers"
    )
    refused_network(f"transformers:{tmp_path / 'absent'}", "there is no folder .*absent")
    refused_network(f"{bert}[pool=max]", r"use minilm, .* nothing or \[pool=...\] with mean or cls")
    refused_network(bert, "has no weights 'imagenet'; use source 'pretrained'", "imagenet")


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(tmp_path: Path) -> None:
    name = save_encoder(tmp_path, vocab_size=10)
    refused_network(name, r"tokenizer has 21 tokens, but the model only 10 embeddings")


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    name = save_encoder(tmp_path / "two", num_hidden_layers=2)
    other = Path(save_encoder(tmp_path / "three").removeprefix("transformers:"))
    weights = (tmp_path / "two" / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(weights)
    refused_network(f"transformers:{other}", "belong to another architecture: 16 are missing")
    (other / "model.safetensors").write_bytes(b"nonsense")
    refused_network(f"transformers:{other}", "cannot be read")
    assert build(name, "pretrained", 2, 0)


def test_weights_that_are_not_recorded_are_refused(tmp_path: Path) -> None:
    name = save_encoder(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    refused_network(name, "cannot be read: Error no file named model.safetensors")


def test_a_model_of_the_hub_needs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    refused_network(
        "transformers:nobody/no-such-model",
        "nobody/no-such-model is not on this machine and could not be loaded from the hub",
    )


@pytest.mark.parametrize(
    ("save", "kind", "pool"),
    [(save_encoder, "bert", "[pool=cls]"), (save_sound_encoder, "whisper", "")],
)
def test_an_exported_model_does_not_need_the_folder_of_its_backbone(
    save: Callable[[Path, str], str], kind: str, pool: str, tmp_path: Path
) -> None:
    folder, name = tmp_path / "a model [2]", save(tmp_path / kind, kind) + pool
    made = export(build(name, "pretrained", 2, 0), name, ("a", "b"), folder)
    rows = made.form.random(3, torch.Generator().manual_seed(0))
    logits = made.logits(rows)
    shutil.rmtree(tmp_path / kind)
    assert torch.equal(open_model(folder).logits(rows), logits)
    about = json.loads((folder / "model.json").read_text())
    del about["files"]["config.json"]  # as version 0.1.0 wrote it
    (folder / "model.json").write_text(json.dumps(about))
    with refused(f"by version 0.1.0, without config.json.*there is no folder {tmp_path / kind}"):
        open_model(folder)


def test_the_extra_is_asked_for(monkeypatch: pytest.MonkeyPatch, bert: str) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    refused_network(
        bert, r"networks of transformers need the extra: pip install -e '.\[text\]'", "scratch"
    )


def test_what_does_not_suit_it_is_refused(make_spec: MakeSpec, texts: str, bert: str) -> None:
    with refused("takes 24 tokens of text and cannot be used for images"):
        check(spec_of(make_spec, "digits", bert))
    with refused("resolution 64 is for networks that take images"):
        check(spec_of(make_spec, texts, bert, resolution=64))
