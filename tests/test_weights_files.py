"""Weights files as training scripts save them are loaded; what would run code, or is of another network, is
refused."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from harness.backbones import build, read_weights, restore
from harness.core.spec import TrialSpec
from harness.core.strategies import FeatureTransfer, LinearProbe
from harness.core.study import Study
from harness.inputs import Pixels
from harness.search.preflight import check_study
from tests.refusals import refused
from tests.trials import export

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    """Weights of a network that was trained for seven classes."""
    torch.manual_seed(3)
    return dict(timm.create_model("test_resnet", num_classes=7).state_dict())


def prefixed(state: Mapping[str, torch.Tensor], prefix: str) -> State:
    return {prefix + k: v for k, v in state.items()}


def cast(state: State, dtype: torch.dtype) -> State:
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}


def others(state: State) -> State:
    """The same names with other values."""
    return {k: v + 1 for k, v in state.items()}


def timm_script(state: State) -> dict[str, Any]:
    """What timm's train.py saves, with a metric that came from NumPy."""
    return {
        "epoch": 3,
        "arch": "test_resnet",
        "state_dict": state,
        "state_dict_ema": others(state),
        "optimizer": {"state": {0: {"step": torch.ones(()), "exp_avg": torch.zeros(3)}}},
        "args": argparse.Namespace(lr=0.1, output=Path("runs"), opt=SimpleNamespace(name="sgd")),
        "amp_scaler": {"scale": 65536.0},
        "metric": np.float64(71.3),
        "version": 2,
    }


FORMS: dict[str, tuple[Callable[[State], Any], str]] = {
    # what was saved, what is said of it
    "plain": (lambda s: s, ""),
    "compiled": (lambda s: prefixed(s, "_orig_mod."), "“_orig_mod.” removed from the names"),
    "distributed": (lambda s: prefixed(s, "module."), "prefix “module.” removed"),
    "both": (
        lambda s: prefixed(s, "module._orig_mod."),
        "“_orig_mod.” removed from the names; prefix",
    ),
    "both, the other way": (lambda s: prefixed(s, "_orig_mod.module."), "prefix “module.” removed"),
    "compiled inside": (lambda s: prefixed(s, "model._orig_mod."), "prefix “model.” removed"),
    "lightning": (
        lambda s: {"state_dict": prefixed(s, "model."), "hyper_parameters": {"lr": 0.1}},
        "taken from state_dict; prefix “model.” removed",
    ),
    "lightning with a loss": (
        lambda s: {"state_dict": {**prefixed(s, "model."), "criterion.weight": torch.ones(7)}},
        "1 other entries left out",
    ),
    "backbone": (lambda s: prefixed(s, "backbone."), "prefix “backbone.” removed"),
    "encoder and projector": (
        lambda s: {**prefixed(s, "encoder."), "projector.0.weight": torch.ones(2, 2)},
        "prefix “encoder.” removed; 1 other",
    ),
    "weights": (lambda s: {"weights": s}, "taken from weights"),
    "any other key": (lambda s: {"epoch": 3, "student": s}, "taken from student"),
    "model": (lambda s: {"model": s, "epoch": torch.tensor(4)}, "taken from model"),
    "two levels": (lambda s: {"model": {"state_dict": s}}, "taken from model > state_dict"),
    "ema alone": (lambda s: {"state_dict_ema": s}, "taken from state_dict_ema"),
    "ema beside": (lambda s: {"model": s, "model_ema": others(s)}, "taken from model"),
    "timm's script": (timm_script, "taken from state_dict"),
    "half": (lambda s: cast(s, torch.float16), ""),
    "bfloat16": (lambda s: cast(s, torch.bfloat16), ""),
    "double": (lambda s: cast(s, torch.float64), ""),
    "headless": (lambda s: {k: v for k, v in s.items() if not k.startswith("fc.")}, ""),
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_those_of_the_file_in_whatever_form_they_were_saved(
    form: str, state: State, tmp_path: Path
) -> None:
    make, said = FORMS[form]
    torch.save(make(state), tmp_path / "x.pt")
    network = build("test_resnet", f"file:{tmp_path / 'x.pt'}", 3, seed=0)
    head = set(network.groups[-1].parameters)
    kind = {"half": torch.float16, "bfloat16": torch.bfloat16}.get(form, torch.float32)
    for name, tensor in network.model.state_dict().items():
        wanted = state[name].to(kind) if state[name].is_floating_point() else state[name]
        assert name in head or torch.equal(tensor, wanted.to(tensor.dtype)), name
    assert [said in line and str(tmp_path) in line for line in network.notes] == [True] * bool(said)


SUFFIXES = [
    *((save_file, f"x.{suffix}") for suffix in ("SAFETENSORS", "SafeTensors", "bin", "pt")),
    *((torch.save, name) for name in ("x.PTH", "x.Bin", "x", "x.safetensors.pt")),
]


@pytest.mark.parametrize(("save", "name"), SUFFIXES)
def test_files_are_known_by_their_content_whatever_their_suffix(
    save: Callable[[State, Path], object], name: str, state: State, tmp_path: Path
) -> None:
    save({k: v.contiguous() for k, v in state.items()}, tmp_path / name)
    assert torch.equal(read_weights(tmp_path / name)["fc.weight"], state["fc.weight"])


def test_a_study_says_once_what_was_dropped(state: State, tmp_path: Path) -> None:
    torch.save({"state_dict": prefixed(state, "module.")}, tmp_path / "x.pt")

    def space(trial: Any, strategy: str) -> TrialSpec:
        chosen = LinearProbe() if strategy == "probe" else FeatureTransfer()
        return TrialSpec(
            "digits", "test_resnet", chosen, f"file:{tmp_path / 'x.pt'}", resolution=32
        )

    study = Study(compare={"strategy": ["probe", "features"]}, space=space, name="toy")
    line = f"weights file {tmp_path / 'x.pt'}: taken from state_dict; prefix “module.” removed"
    assert [n for n in check_study(study).notes if "weights" in n] == [line]


# --- exports ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_vit", "deit_tiny_distilled_patch16_224"])
@pytest.mark.parametrize(("trained_at", "wanted_at"), [(96, None), (96, 64), (64, 64)])
def test_an_export_of_another_input_size_gets_its_positions_from_timm(
    name: str, trained_at: int, wanted_at: int | None, tmp_path: Path
) -> None:
    trained = build(name, "scratch", 7, seed=1, resolution=trained_at)
    export(trained, name, tuple("abcdefg"), tmp_path)
    file = tmp_path / "model.safetensors"
    network = build(name, f"file:{file}", 3, seed=0, resolution=wanted_at)
    options: dict[str, Any] = {"img_size": wanted_at} if wanted_at else {}
    theirs = timm.create_model(name, num_classes=3, **options)
    module = __import__(type(theirs).__module__, fromlist=["checkpoint_filter_fn"])
    converted = module.checkpoint_filter_fn(dict(read_weights(file)), theirs)
    head = set(network.groups[-1].parameters)
    for key, tensor in network.model.state_dict().items():
        assert key in head or torch.equal(tensor, converted[key]), key
    assert bool(network.notes) == (trained_at != wanted_at)
    assert all("pos_embed" in note for note in network.notes)


def test_an_export_without_its_page_is_loaded_by_the_library_alone(tmp_path: Path) -> None:
    """And with it, by us, to the same logits."""
    trained = build("repvgg_a0", "scratch", 3, seed=1)
    model = export(trained, "repvgg_a0", ("a", "b", "c"), tmp_path)
    pixels = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    theirs = timm.create_model("repvgg_a0", num_classes=3).eval()
    theirs.load_state_dict(read_weights(tmp_path / "model.safetensors"))
    with torch.no_grad():
        wanted = theirs(model.prepare(pixels)).softmax(1)
    torch.testing.assert_close(model.probabilities(pixels), wanted, rtol=1e-5, atol=1e-5)


# --- refusals --------------------------------------------------------------------------------------


def refused_file(file: Path, match: str) -> str:
    with refused(match) as caught:
        build("test_resnet", f"file:{file}", 3, seed=0)
    said = str(caught.value)
    assert not any(advice in said.lower() for advice in ("weights_only", "trust", "re-running"))
    return said


def test_a_whole_module_is_refused_and_its_class_named(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet"), tmp_path / "x.pt")
    assert "state_dict()" in refused_file(
        tmp_path / "x.pt", r"contains a pickled timm\.models\.resnet\.ResNet"
    )
    torch.save({"model": torch.nn.Linear(2, 2), "epoch": 1}, tmp_path / "y.pt")
    refused_file(tmp_path / "y.pt", r"contains a pickled torch\.nn\.modules\.linear\.Linear")
    (tmp_path / "z.pt").write_bytes(pickle.dumps(torch.nn.Linear(2, 2)))
    refused_file(tmp_path / "z.pt", "is not a weights file")


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_scripted_archive_is_refused_as_a_program(tmp_path: Path) -> None:
    network = torchvision.models.squeezenet1_1(weights=None, num_classes=2)
    torch.jit.script(network).save(str(tmp_path / "x.pt"))
    refused_file(tmp_path / "x.pt", "scripted or exported program")


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_another_architecture_is_refused_with_a_prefix_too(prefix: str, tmp_path: Path) -> None:
    other = timm.create_model("test_efficientnet").state_dict()
    torch.save(prefixed(other, prefix), tmp_path / "x.pt")
    refused_file(tmp_path / "x.pt", r"another architecture: .*missing or has another shape")


@pytest.mark.parametrize("form", ["names", "keys"])
def test_two_networks_in_one_file_are_refused_with_both(
    form: str, state: State, tmp_path: Path
) -> None:
    both = (
        {**prefixed(state, "student."), **prefixed(others(state), "teacher.")}
        if form == "names"
        else {"student": state, "teacher": others(state)}
    )
    torch.save(both, tmp_path / "x.pt")
    refused_file(tmp_path / "x.pt", "several .*student.*teacher")


def test_an_optimiser_alone_is_no_weights_file(tmp_path: Path) -> None:
    torch.save({"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}, tmp_path / "x.pt")
    refused_file(tmp_path / "x.pt", "is not a weights file: it does not contain a state dict")


NO_WEIGHTS = {
    "truncated": None,
    "page": b"<!DOCTYPE html><html><title>404</title></html>",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2\nsize 12345\n",
    "empty": b"",
    "zip": b"PK\x03\x04 and then nothing",
    "pickled number": pickle.dumps(3),
    "pickled dictionary": pickle.dumps({"epoch": 3}),
    "header alone": b"\xff" * 8,
}


@pytest.mark.parametrize("content", NO_WEIGHTS.values(), ids=NO_WEIGHTS)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_what_is_no_weights_file_is_refused(
    content: bytes | None, suffix: str, state: State, tmp_path: Path
) -> None:
    path = tmp_path / f"x.{suffix}"
    if content is None:
        torch.save(state, path)
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(content)
    with refused(rf"^\S+x\.{suffix} is not a weights file"):
        read_weights(path)


def test_weights_that_unpack_to_more_than_they_are_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "spread.pt")
    with refused(r"^weights file \S+spread\.pt: w has more values than the file contains"):
        read_weights(tmp_path / "spread.pt")


def test_weights_that_lack_a_layer_are_refused_whatever_wraps_them(
    state: State, tmp_path: Path
) -> None:
    few = {k: v for k, v in state.items() if not k.startswith("layer3.")}
    torch.save({"state_dict": prefixed(few, "model.")}, tmp_path / "x.pt")
    refused_file(tmp_path / "x.pt", r"another architecture: layer3\.0\.conv1\.weight is missing")


def test_a_model_is_restored_only_from_its_own_weights(state: State) -> None:
    with refused("the weights do not belong to test_resnet"):
        restore("test_resnet", prefixed(state, "model."), 7, Pixels(64))
