"""Averages of weights: against sums by hand and torch's own tools, what is refused, and the whole command."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import compare, topics
from analysis.load import load_study
from harness import run_study
from harness.average import average_networks, main
from harness.backbones import build
from harness.core.selection import METRICS
from harness.core.spec import TrialSpec
from harness.core.strategies import FeatureTransfer, LinearProbe, LoRA
from harness.data.cached import Cache
from harness.deploy.averages import Plan, configurations, no_average, no_path, no_soup, plans
from harness.deploy.soup import Judge, State, soup, trained, wise_ft
from harness.export import export_model
from harness.sync import main as sync
from harness.tracking.results import CellRecord
from harness.tracking.runs import Recorded
from harness.training.device import Cpu
from tests.by_hand import images_by_hand
from tests.made_studies import table, trial
from tests.refusals import refused
from tests.study_files import study_text
from tests.trials import MakeSpec

ACCURACY = METRICS["accuracy"]
NO_CACHE = Cache(None, 0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A source for test_resnet: a file of weights."""
    path = tmp_path_factory.mktemp("weights") / "resnet.pt"
    torch.save(build("test_resnet", "scratch", 10, 0).model.state_dict(), path)
    return f"file:{path}"


@pytest.fixture
def spec(make_spec: MakeSpec, weights: str) -> TrialSpec:
    return make_spec(source=weights, lr=3e-3)


def judge_of(spec: TrialSpec) -> Judge:
    return Judge(spec, ACCURACY, Cpu(), NO_CACHE)


def state_of(spec: TrialSpec) -> State:
    found = trained(spec, Cpu(), NO_CACHE)
    assert found is not None
    return found


# --- means -----------------------------------------------------------------------------------------


def test_a_mean_has_the_mean_weights_and_statistics_estimated_as_torch_does(
    spec: TrialSpec,
) -> None:
    states = [state_of(dataclasses.replace(spec, lr=lr)) for lr in (1e-3, 3e-3)]
    found = judge_of(spec).mean(states, [0.25, 0.75])
    model = build(spec.backbone, "scratch", 10, 0, resolution=32).model
    wanted = {k: 0.25 * v + 0.75 * states[1][k] for k, v in states[0].items()}
    model.load_state_dict({k: v.to(states[0][k].dtype) for k, v in wanted.items()})
    torch.optim.swa_utils.update_bn([images_by_hand(spec, "train")[0]], model)
    moved = 0
    for name, tensor in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
            moved += not torch.equal(states[0][name], states[1][name])
    assert moved > 20


def test_statistics_that_all_networks_share_are_kept(spec: TrialSpec) -> None:
    frozen = dataclasses.replace(spec, batch_norm="frozen")
    states = [state_of(dataclasses.replace(frozen, lr=lr)) for lr in (1e-3, 3e-3)]
    found = judge_of(spec).mean(states, [0.5, 0.5])
    names = [name for name in found if name.endswith("running_mean")]
    assert names
    assert all(torch.equal(found[name], states[0][name]) for name in names)


def test_linear_probes_averaged_give_their_mean_logits(spec: TrialSpec) -> None:
    probe = dataclasses.replace(spec, strategy=LinearProbe())
    states = [state_of(dataclasses.replace(probe, lr=lr)) for lr in (1e-3, 1e-1)]
    found = judge_of(probe).mean(states, [0.5, 0.5])
    model = build(spec.backbone, "scratch", 10, 0, resolution=32).model.eval()
    images = torch.randn(5, 3, 32, 32)
    logits = []
    for state in (*states, found):
        model.load_state_dict(dict(state))
        with torch.inference_mode():
            logits.append(model(images))
    torch.testing.assert_close((logits[0] + logits[1]) / 2, logits[2])


def test_the_ends_of_the_path_are_the_networks_themselves(spec: TrialSpec) -> None:
    tuned, probe = state_of(spec), state_of(dataclasses.replace(spec, strategy=LinearProbe()))
    judge = judge_of(spec)
    for weight, state in ((1.0, tuned), (0.0, probe)):
        model = build(spec.backbone, "scratch", 10, 0, resolution=32).model.eval()
        model.load_state_dict(dict(state))
        images, labels = images_by_hand(spec, "test")
        with torch.inference_mode():
            wanted = float((model(images).argmax(1) == labels).double().mean())
        assert judge.final(state)["test_accuracy"] == pytest.approx(wanted), weight


@pytest.mark.parametrize("strategy", [LoRA(rank=2)])
def test_adapters_are_merged_before_they_are_averaged(strategy: LoRA, make_spec: MakeSpec) -> None:
    pytest.importorskip("peft")
    lora = make_spec(backbone="test_vit", strategy=strategy, resolution=160, epochs=1, shots=2)
    state = state_of(lora)
    assert (
        state.keys()
        == build("test_vit", "scratch", 10, 0, resolution=160).model.state_dict().keys()
    )


# --- what is chosen --------------------------------------------------------------------------------


class OnALine:
    """Networks that are numbers: the nearer to `best` the better on validation."""

    def __init__(self, best: float, digits: int = 6) -> None:
        self.best, self.digits, self.tested = best, digits, list[float]()

    def merit(self, state: State) -> float:
        return round(-abs(float(state["w"]) - self.best), self.digits)

    def final(self, state: State) -> Mapping[str, float]:
        self.tested.append(float(state["w"]))
        return {"test_accuracy": 0.5}

    def mean(self, states: Sequence[State], weights: Sequence[float]) -> State:
        return at(sum(w * float(s["w"]) for s, w in zip(states, weights, strict=True)))


def at(value: float) -> State:
    return {"w": torch.tensor(value, dtype=torch.float64)}


def test_soup_takes_networks_best_first_unless_they_lower_the_score() -> None:
    judge = OnALine(best=0.0)
    # 1 is best; with -3 it is at -1, as good; with 4 then at 2/3, better; with 9 worse.
    found = soup(cast(Judge, judge), [at(9.0), at(-3.0), at(1.0), at(4.0)])
    assert found.amount == 3
    assert float(found.state["w"]) == pytest.approx(2 / 3)
    assert judge.tested == [pytest.approx(2 / 3)]  # nothing else is scored on test


@pytest.mark.parametrize(("best", "alpha"), [(0.0, 0.0), (0.32, 0.3), (7.0, 1.0)])
def test_wise_ft_takes_the_point_that_is_best_on_validation(best: float, alpha: float) -> None:
    judge = OnALine(best)
    found = wise_ft(cast(Judge, judge), probe=at(0.0), tuned=at(1.0))
    assert found.amount == alpha
    assert judge.tested == [pytest.approx(alpha)]


def test_of_equal_points_the_fine_tuned_network_is_taken() -> None:
    found = wise_ft(cast(Judge, OnALine(0.5, digits=0)), probe=at(0.0), tuned=at(0.4))
    assert found.amount == 1.0


# --- which networks share a start ------------------------------------------------------------------


def kept(spec: TrialSpec, accuracy: float, phase: str = "tune", **tags: str) -> Recorded:
    flat = {name: str(value) for name, value in spec.flat().items()}
    told, run_id = {"cell": "full", "phase": phase, **tags}, f"{phase} {accuracy}"
    return Recorded(run_id, "toy", told, flat, {"val_accuracy": accuracy})


def test_other_configurations_follow_by_validation_with_the_seed_of_the_repeat(
    spec: TrialSpec,
) -> None:
    tuned = [
        kept(dataclasses.replace(spec, seed=1, lr=lr), accuracy)
        for lr, accuracy in ((1e-3, 0.5), (3e-3, 0.9), (1e-2, 0.7), (2e-2, float("nan")))
    ]
    repeat = dataclasses.replace(spec, seed=77)
    found = configurations(tuned, repeat, ACCURACY)
    assert [s.lr for s in found] == [3e-3, 1e-2, 1e-3]
    assert {s.seed for s in found} == {77}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"resolution": 48},
            "differ in resolution (32, 48), so their networks do not share a start",
        ),
        ({"backbone": "test_vit"}, "differ in backbone (test_resnet, test_vit)"),
        ({"shots": 3}, "differ in shots (5, 3)"),
    ],
)
def test_networks_that_do_not_share_a_start_make_no_soup(
    changes: dict[str, Any], said: str, spec: TrialSpec
) -> None:
    assert said in no_soup([spec, dataclasses.replace(spec, **changes)])
    assert no_soup([spec, dataclasses.replace(spec, lr=1e-4)]) == ""


def test_what_cannot_be_averaged_is_refused_with_the_reason(spec: TrialSpec) -> None:
    scratch = dataclasses.replace(spec, source="scratch")
    features = dataclasses.replace(spec, strategy=FeatureTransfer())
    probe = dataclasses.replace(spec, strategy=LinearProbe())
    assert "start from random weights" in no_average(scratch)
    assert "trains no weights" in no_average(features)
    assert "only the head is trained" in no_path(probe)
    assert no_average(spec) == no_path(spec) == ""
    assert no_soup([spec, features]) == "some of the configurations train no weights"
    for one, said in ((scratch, "random weights"), (probe, "two configurations; only the head")):
        record = CellRecord("full", (kept(one, 0.9, "repeat", index="0", seed="0"),))
        with refused(f"no weights of cell “full” can be averaged: .*{said}"):
            plans(record, [], 4)


def test_without_a_soup_there_is_still_wise_ft(spec: TrialSpec) -> None:
    record = CellRecord("full", (kept(spec, 0.9, "repeat", index="0", seed="0"),))
    tuned = [kept(dataclasses.replace(spec, resolution=48), 0.8)]
    (plan,), notes = plans(record, tuned, 4)
    assert plan.path
    assert plan.specs == (spec,)
    assert len(notes) == 1
    assert notes[0].startswith("no soup: the configurations differ in resolution")


def test_a_repeat_that_diverges_now_is_named(spec: TrialSpec) -> None:
    wild = dataclasses.replace(spec, optimizer="sgd", lr=1e30)
    plan = Plan(kept(wild, 0.9, "repeat", index="3", seed="0"), ACCURACY, (wild,), True)
    with refused("“full, repeat 3” diverged"):
        plan.carry_out(Cpu(), NO_CACHE)


# --- the command -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_averages_are_recorded_once_and_in_the_report(
    weights: str, tracking_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"shots": 5, "val_shots": 4, "test_shots": 6, "epochs": 2, "batch_size": 16}
    text = study_text({"full": "strategies.FullFineTune()"}, 2, 2, True, source=weights, **sizes)
    (tmp_path / "toy.py").write_text(text)
    run_study(tmp_path / "toy.py", tracking_uri=tracking_uri, device="cpu")
    before = load_study("toy", tracking_uri)
    options = ["--study", "toy", "--device", "cpu", "--tracking-uri", tracking_uri]
    capsys.readouterr()
    assert main(options) == 0
    said = capsys.readouterr()
    assert "[  2/2] full, repeat 1: single " in said.out
    assert "NOT as recorded" not in said.out
    assert main(options) == 0
    assert "0 repeats done, 2 recorded before" in capsys.readouterr().out
    assert sync(["--study", "toy", "--tracking-uri", tracking_uri, "--check"]) == 0

    after = load_study("toy", tracking_uri)
    pd.testing.assert_frame_equal(before.trials, after.trials)
    pd.testing.assert_frame_equal(before.predictions, after.predictions)
    repeats = after.trials[after.trials["phase"] == "repeat"]
    found = after.averages
    assert sorted(found["kind"]) == ["soup", "soup", "wise_ft", "wise_ft"]
    assert set(found["run_id"]) == set(repeats["run_id"])
    by_run = repeats.set_index("run_id")["val_score"]
    own = by_run.loc[found["run_id"]].to_numpy()
    assert (found["val_score"].to_numpy() >= own - 1e-9).all()  # the single network is a candidate
    assert set(found["amount"]) <= {1, 2, *np.arange(11) / 10}
    section = topics.averages.section(compare.find(after))
    assert cast(topics.Table, section.parts[0]).columns["Cell"] == ["full"] * 3
    assert section.answer[0].startswith("For “full”, ")
    with refused("no cell 'x'"):
        average_networks("toy", cell="x", tracking_uri=tracking_uri)

    out = tmp_path / "model"
    export_model("toy", average="wise_ft", out=out, device="cpu", tracking_uri=tracking_uri)
    about = json.loads((out / "model.json").read_text())
    first = repeats.set_index("index")["run_id"].loc[0]
    (row,) = found[(found["run_id"] == first) & (found["kind"] == "wise_ft")].to_dict("records")
    assert about["exported"]["test_accuracy"] == pytest.approx(row["test_score"])
    assert f"WiSE-FT at {row['amount']:g}" in about["made"]
    assert "This model is an average of weights (WiSE-FT" in (out / "README.md").read_text()
    with refused("cell “full”: no soup: it needs at least two configurations"):
        export_model(
            "toy", average="soup", members=1, out=tmp_path / "x", tracking_uri=tracking_uri
        )


def test_gain_is_the_paired_difference_with_its_t_interval() -> None:
    rows = [
        trial("full", "repeat", i, a) | {"latency_ms": 3.0} for i, a in enumerate((0.7, 0.8, 0.75))
    ]
    averages = pd.DataFrame(
        {"run_id": [r["run_id"] for r in rows], "cell": "full", "kind": "soup"}
        | {"amount": [1.0, 3.0, 2.0], "val_score": 0.9, "test_score": [0.72, 0.81, 0.78]}
    )
    study = dataclasses.replace(table(rows), averages=averages)
    single, found = topics.averages.gains(compare.find(study)).to_dict("records")
    differences = np.array([0.02, 0.01, 0.03])
    half = (
        4.302652729911275 * differences.std(ddof=1) / np.sqrt(3)
    )  # t quantile, 2 degrees of freedom
    assert found["gain"] == pytest.approx(differences.mean())
    assert (found["low"], found["high"]) == pytest.approx((0.02 - half, 0.02 + half))
    assert single["test"] == pytest.approx(0.75)
    assert (found["latency_ms"], found["n"], found["test"]) == (3.0, 3, pytest.approx(0.77))
    section = topics.averages.section(compare.find(study))
    shown = cast(topics.Table, section.parts[0]).rows()
    assert shown[1][1] == "Soup (1 to 3 networks)"
    assert re.search(
        r"a soup of its networks differs .* by \+2\.0 points \(-0\.5 to \+4\.5\)", section.answer[0]
    )
