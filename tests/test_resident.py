"""Examples that stay on a device change no result, are counted, and are read from the host only once.

The accelerator is the processor under another name: torch computes as always, memory is what the tests say.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from harness import strategies
from harness.core.results import TrialResult
from harness.core.spec import TrialSpec
from harness.data.cached import Cache, CachedArray, Positions
from harness.inputs import Frames, Pixels, Tokens
from harness.inputs.base import Input
from harness.inputs.mel import Mel
from harness.training import trial as trial_module
from harness.training.device import Accelerator, Cpu, Device
from harness.training.forecast import forecast
from harness.training.loop import start
from harness.training.resident import staying
from harness.training.trial import Limits, TrialTask, run_trial
from tests.trials import MakeSpec, run, values

MIB = 2**20
IMAGE = 3 * 32 * 32
TRAIN, VAL = 50 * IMAGE, 40 * IMAGE
"""Bytes of the 50 training and 40 validation images of the tests' trial."""


class Backend:
    """Stands for torch.accelerator. Unlike a SimpleNamespace it can be a key, as devices are."""

    def __init__(self, **functions: object) -> None:
        vars(self).update(functions)


def accelerator(free: int | None = None, room: int = 0) -> Accelerator:
    """An accelerator with that much free memory; None if it does not say."""
    known = {} if free is None else {"get_memory_info": lambda device: (free, 2**40)}
    backend = Backend(synchronize=lambda: None, **known)
    return Accelerator(torch.device("cpu"), room=room, backend=backend)


def resident(result: TrialResult) -> float:
    """Bytes on the device."""
    return result.metrics.get("resident_examples_mib", 0.0) * MIB


CASES = [
    (strategies.FullFineTune(), {"augment": "flip_crop"}),
    (strategies.FullFineTune(), {"augment": "rotation", "views": 2, "epochs": 3}),
    (strategies.FullFineTune(), {"augment": "mixup"}),
    (strategies.FullFineTune(), {"sampling": "balanced", "batch_norm": "reestimate"}),
    (strategies.LinearProbe(), {}),
    (strategies.GradualUnfreezing(1), {"epochs": 3}),
    (strategies.FeatureTransfer("logistic"), {"epochs": 1}),
]


@pytest.mark.parametrize(("strategy", "changes"), CASES)
@pytest.mark.parametrize("cached", [True, False])
def test_examples_on_the_device_change_no_result(
    strategy: strategies.Strategy,
    changes: dict[str, object],
    cached: bool,
    make_spec: MakeSpec,
    tmp_path: Path,
) -> None:
    spec = make_spec(strategy=strategy, **changes)
    cache = Cache(tmp_path / "cache") if cached else Cache(budget=0)
    _, epochs, here = run(spec, cache)
    _, epochs_there, there = run(spec, cache, accelerator(room=2**30))
    assert values(epochs) == values(epochs_there)
    assert here.predictions is not None
    assert there.predictions is not None
    assert np.array_equal(here.predictions.probability, there.predictions.probability)
    assert resident(here) == 0
    assert resident(there) <= TRAIN + VAL


@pytest.mark.parametrize(
    ("room", "stay"),
    [
        (0, 0),
        (VAL - 1, 0),
        (TRAIN - 1, VAL),
        (TRAIN, TRAIN),
        (TRAIN + VAL - 1, TRAIN),
        (TRAIN + VAL, TRAIN + VAL),
    ],
)
def test_a_part_stays_whole_or_not_at_all(
    room: int, stay: int, make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = make_spec()
    assert resident(run(spec, Cache(tmp_path), accelerator(room=room))[2]) == stay
    assert forecast(spec).with_room(room).resident_mib * MIB == stay
    assert sum(staying((TRAIN, VAL), room)) == stay


def test_examples_on_the_device_are_read_once(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    take = CachedArray.take

    def count(rows: CachedArray, index: Positions) -> torch.Tensor:
        taken.append(len(index))
        return take(rows, index)

    monkeypatch.setattr(CachedArray, "take", count)
    for device, times in ((accelerator(room=2**30), 1), (accelerator(), 4)):
        taken.clear()
        fit = start(make_spec(epochs=4), device, Cache(tmp_path))
        list(fit)
        # The first row of each part says how large they are.
        assert sum(taken) == times * 90 + 2 * (times == 1)


def test_outputs_of_frozen_layers_stay_only_in_the_place_of_their_images(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    probe = make_spec(strategy=strategies.LinearProbe())
    _, _, result = run(probe, Cache(tmp_path), accelerator(room=2**30))
    assert "kept after global_pool" in result.notes["prefix"]
    assert 0 < resident(result) < TRAIN + VAL
    # The outputs of the last cut are larger than the images.
    gradual = make_spec(strategy=strategies.GradualUnfreezing(1), epochs=4)
    _, _, result = run(gradual, Cache(tmp_path), accelerator(room=2**30))
    assert result.notes["prefix"].count("kept after") > 1
    assert resident(result) <= TRAIN + VAL


# --- the decision of a trial -------------------------------------------------------------------------


def finished(
    spec: TrialSpec, device: Device, monkeypatch: pytest.MonkeyPatch, limit: int | None = None
) -> TrialResult:
    monkeypatch.setattr(trial_module, "resolve_device", lambda _: device)
    *_, last = run_trial(TrialTask(spec, limits=Limits(limit)))
    assert isinstance(last, TrialResult)
    return last


def test_examples_take_at_most_half_of_what_training_leaves_and_are_forecast(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec()
    needed = int(forecast(spec).peak_mib * MIB)
    for left, stay in (
        (2 * (TRAIN + VAL) + 2, TRAIN + VAL),
        (2 * TRAIN + 2, TRAIN),
        (0, 0),
        (-needed, 0),
    ):
        result = finished(spec, accelerator(free=needed + left), monkeypatch)
        assert result.outcome == "complete"
        assert resident(result) == stay
        assert result.metrics["forecast_peak_mib"] * MIB == pytest.approx(needed + stay, abs=2)


def test_a_memory_limit_keeps_examples_away_before_it_keeps_a_trial_from_running(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, device = make_spec(), accelerator(free=2**40)
    needed = int(forecast(spec).peak_mib * MIB) + 1
    assert finished(spec, device, monkeypatch).metrics["resident_examples_mib"] > 0
    limited = finished(spec, device, monkeypatch, limit=needed)
    assert limited.outcome == "complete"
    assert "resident_examples_mib" not in limited.metrics
    assert finished(spec, device, monkeypatch, limit=needed - 2).outcome == "oom"


def test_nothing_stays_on_a_processor_or_where_free_memory_is_not_known(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    for device in (Cpu(), accelerator()):
        assert device.free_memory() == 0
        assert "resident_examples_mib" not in finished(make_spec(), device, monkeypatch).metrics


def test_free_memory_is_asked_for_when_unused_memory_was_given_back() -> None:
    calls: list[str] = []

    def free(device: torch.device) -> tuple[int, int]:
        calls.append(f"free memory of {device}")
        return 5, 10

    backend = Backend(empty_cache=lambda: calls.append("empty"), get_memory_info=free)
    assert Accelerator(torch.device("cuda", 1), backend=backend).free_memory() == 5
    assert calls == ["empty", "free memory of cuda:1"]


# --- augmentation where the examples are -------------------------------------------------------------

POLICIES = [
    *((Pixels(32), name) for name in Pixels.augmentations),
    *((Frames(Mel(8000, 256, 128, 20), -30.0, 1.0), name) for name in Frames.augmentations),
]


def check_device(form: Input, name: str) -> None:
    """torch's device without memory refuses operations on tensors of two devices, as a GPU does."""
    rows = form.random(4, torch.Generator().manual_seed(0))
    there = rows.to("meta")
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    labels, policy = torch.arange(4), form.augmentation(name, 4)
    here, _ = policy(rows, labels, generators[0])
    varied, _ = policy(there, labels, generators[1])
    assert varied.device.type == "meta"
    assert (varied.shape, varied.dtype) == (here.shape, here.dtype)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


@pytest.mark.parametrize(("form", "name"), POLICIES, ids=str)
def test_augmentation_runs_on_the_device_with_random_numbers_of_the_processor(
    form: Input, name: str
) -> None:
    check_device(form, name)


def test_augmentation_of_texts_runs_on_the_device() -> None:
    pytest.importorskip("tokenizers")
    from tests.texts import word_tokenizer

    check_device(Tokens(word_tokenizer(), 16, 32), "token_dropout")


def test_a_layer_that_works_in_place_does_not_change_what_stays(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    """The head of MobileNetV3 begins with such an activation, behind the last frozen layer."""
    changes = {"backbone": "mobilenetv3_small_050", "resolution": 64, "epochs": 3}
    spec = make_spec(strategy=strategies.LinearProbe(), **changes)
    cache = Cache(tmp_path / "cache")
    _, beside, _ = run(spec, cache, accelerator(room=0))
    _, there, result = run(spec, cache, accelerator(room=2**40))
    assert resident(result) > 0
    assert values(there) == values(beside)
