"""Training equals a loop written by hand, and what a strategy freezes does not move by one bit."""

from __future__ import annotations

import gc
import io
import math
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from harness import strategies
from harness.backbones import Backbone, build
from harness.core.results import EpochResult, predictions_parquet
from harness.core.spec import TrialSpec
from harness.data import load_target, split_indices
from harness.data.cached import Cache
from harness.training.audit import AuditFailed
from harness.training.device import Cpu
from harness.training.loop import Diverged, Training, start
from harness.training.optimizer import GroupedOptimizer, Schedule, batches
from harness.training.outcomes import classify
from tests.by_hand import entries_by_hand, images_by_hand, model_by_hand, orders_by_hand
from tests.trials import MakeSpec

State = dict[str, torch.Tensor]


def run(spec: TrialSpec) -> tuple[Training, list[EpochResult]]:
    fit = Training(spec, Cpu())
    return fit, list(fit)


def state(fit: Training) -> State:
    return {n: t.clone() for n, t in fit._backbone.model.state_dict().items()}


def losses(epochs: list[EpochResult]) -> list[float]:
    return [e.train_loss for e in epochs]


# --- the loop by hand ------------------------------------------------------------------------------


def optimizer_by_hand(spec: TrialSpec, model: Any) -> torch.optim.Optimizer:
    entries = entries_by_hand([model], spec.weight_decay)
    if spec.optimizer == "sgd":
        return torch.optim.SGD(entries, lr=spec.lr, momentum=0.9)
    return torch.optim.AdamW(entries, lr=spec.lr)


def train_by_hand(spec: TrialSpec) -> tuple[Any, list[float], list[float]]:
    """A plain torch loop: the network, its training losses and its validation losses by epoch."""
    model = model_by_hand(spec)
    images, labels = images_by_hand(spec, "train")
    val_images, val_labels = images_by_hand(spec, "val")
    steps = spec.epochs * math.ceil(len(labels) / spec.batch_size)
    warm = max(1, round(spec.warmup * steps))
    optimizer = optimizer_by_hand(spec, model)
    schedule = lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min(1, (s + 1) / warm) * (1 + math.cos(math.pi * s / steps)) / 2,
    )
    train_losses, val_losses = [], []
    for order in orders_by_hand(spec, len(labels)):
        model.train()
        total = 0.0
        for rows in order:
            loss = F.cross_entropy(
                model(images[rows]), labels[rows], label_smoothing=spec.label_smoothing
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        train_losses.append(total / len(labels))
        model.eval()
        with torch.no_grad():
            val_losses.append(F.cross_entropy(model(val_images), val_labels).item())
    return model, train_losses, val_losses


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw", "lr": 1e-3, "warmup": 0.25, "weight_decay": 0.05},
        {"optimizer": "sgd", "lr": 2e-3, "warmup": 0.0, "weight_decay": 0.01},
        {"optimizer": "adamw", "lr": 1e-3, "warmup": 1.0, "label_smoothing": 0.2, "seed": 4},
    ],
    ids=["adamw", "sgd", "smoothed"],
)
def test_full_fine_tune_equals_a_loop_by_hand(changes: dict[str, Any], make_spec: MakeSpec) -> None:
    spec = make_spec(**changes)
    fit, epochs = run(spec)
    model, train_losses, val_losses = train_by_hand(spec)
    untrained = model_by_hand(spec)
    # Another rounding of the normalisation and of the fused optimiser, 1e-7 per operation; Adam
    # divides by small gradients and batch norm by small deviations, and eight steps add up.
    assert losses(epochs) == pytest.approx(train_losses, rel=3e-4)
    assert [e.val_loss for e in epochs] == pytest.approx(val_losses, rel=3e-4)
    for name, theirs in model.named_parameters():
        ours, start = (dict(m.named_parameters())[name] for m in (fit._backbone.model, untrained))
        # A scale of batch norm may move by less than a few float32 steps around 1 (1.2e-7 each).
        rounding = torch.finfo(torch.float32).eps * theirs.norm()
        assert (ours - theirs).norm() <= 0.05 * (theirs - start).norm() + rounding, name


def test_linear_probe_equals_a_linear_layer_on_timms_frozen_features(make_spec: MakeSpec) -> None:
    spec = make_spec(strategy=strategies.LinearProbe(), warmup=0.0, lr=1e-2, weight_decay=0.1)
    fit, epochs = run(spec)
    model = model_by_hand(spec).eval()
    images, labels = images_by_hand(spec, "train")
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images), pre_logits=True)
    linear = nn.Linear(features.shape[1], 10)
    linear.load_state_dict(model.get_classifier().state_dict())
    optimizer = optimizer_by_hand(spec, linear)
    step, by_hand = 0, []
    for order in orders_by_hand(spec, len(labels)):
        total = 0.0
        for rows in order:
            for entry in optimizer.param_groups:
                entry["lr"] = spec.lr * (1 + math.cos(math.pi * step / 8)) / 2
            loss = F.cross_entropy(linear(features[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
            step += 1
        by_hand.append(total / len(labels))
    # A convex problem of one layer: float32 rounding of the features is all that differs.
    assert losses(epochs) == pytest.approx(by_hand, rel=1e-4)
    head = dict(fit._backbone.groups[-1].parameters)
    torch.testing.assert_close(head["fc.weight"].data, linear.weight.data, rtol=1e-3, atol=1e-4)


# --- freezing --------------------------------------------------------------------------------------


def snapshot(network: Backbone) -> list[list[torch.Tensor]]:
    return [[p.detach().clone() for p in g.parameters.values()] for g in network.groups]


def moved(old: list[list[torch.Tensor]], new: list[list[torch.Tensor]]) -> list[bool]:
    """Per group: did any of its parameters change?"""
    return [
        not all(torch.equal(a, b) for a, b in zip(x, y, strict=True))
        for x, y in zip(old, new, strict=True)
    ]


def test_gradual_unfreezing_moves_each_group_exactly_when_due(make_spec: MakeSpec) -> None:
    spec = make_spec(strategy=strategies.GradualUnfreezing(every=2), epochs=5, shots=3)
    fit = Training(spec, Cpu())
    seen, before = [], snapshot(fit._backbone)
    for _ in fit:
        after = snapshot(fit._backbone)
        seen.append(moved(before, after))
        before = after
    stem = [False] * 3
    assert seen == [
        [*stem, False, False, True],
        [*stem, False, False, True],
        [*stem, False, True, True],
        [*stem, False, True, True],
        [*stem, True, True, True],
    ]


def test_frozen_parameters_hold_no_gradients(make_spec: MakeSpec) -> None:
    fit = Training(make_spec(strategy=strategies.LastBlock()), Cpu())
    groups = fit._backbone.groups
    seen: set[int] = set()
    for g, group in enumerate(groups):
        for parameter in group.parameters.values():
            parameter.register_post_accumulate_grad_hook(lambda _, g=g: seen.add(g))
    assert len(list(fit)) == 2
    assert seen == {4, 5}
    # Between steps nothing holds one: it would lie in memory through the next forward pass.
    assert all(p.grad is None for group in groups for p in group.parameters.values())


@pytest.mark.parametrize(
    "strategy",
    [
        strategies.LinearProbe(),
        strategies.FullFineTune(),
        strategies.L2SP(0.1),
        strategies.FeatureTransfer(),
    ],
)
def test_network_of_a_finished_trial_is_freed_without_the_garbage_collector(
    strategy: strategies.Strategy, make_spec: MakeSpec
) -> None:
    """A cycle would keep it, and count as the next trial's memory; collecting takes .3 s a trial."""
    fit = start(make_spec(strategy=strategy), Cpu())
    assert list(fit)
    fit.finish(test=True)
    model = weakref.ref(fit._backbone.model)
    gc.disable()
    try:
        del fit
        assert model() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("strategy", [strategies.GradualUnfreezing(1), strategies.FullFineTune()])
def test_time_of_a_trial_is_estimated_from_a_few_steps(
    strategy: strategies.Strategy, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock that moves one second per reading a step takes one second."""
    now = iter(range(1_000_000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(now)))
    spec = make_spec(strategy=strategy, epochs=3)
    found = Training(spec, Cpu(), Cache(budget=0)).estimate_seconds()
    assert found == 3 * 4  # 50 images in batches of 16, nothing kept


def test_forgotten_freezing_of_batch_norm_fails_the_audit(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backbone, "train_mode", lambda self, *_: self.model.train())
    # With a kept prefix the frozen batch norms would never see an image.
    fit = Training(make_spec(strategy=strategies.LinearProbe()), Cpu(), Cache(budget=0))
    assert len(list(fit)) == 2
    with pytest.raises(AuditFailed, match="was frozen but changed"):
        fit.finish(test=False)


def test_forgotten_learning_rates_fail_the_audit(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = GroupedOptimizer.applied
    monkeypatch.setattr(GroupedOptimizer, "applied", lambda self: {g: {1.0} for g in real(self)})
    with pytest.raises(AuditFailed, match="learning rate"):
        run(make_spec())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_only_weights_of_two_or_more_dimensions_decay(optimizer: str, make_spec: MakeSpec) -> None:
    """One step: the gradients are equal, so what differs is the decay."""
    one_step = {"epochs": 1, "batch_size": 64, "warmup": 0.0, "lr": 1e-3, "optimizer": optimizer}
    plain, decayed = (run(make_spec(weight_decay=d, **one_step))[0] for d in (0.0, 100.0))
    start = dict(build("test_resnet", "scratch", 10, seed=0).model.named_parameters())
    without = dict(plain._backbone.model.named_parameters())
    for name, parameter in decayed._backbone.model.named_parameters():
        if parameter.ndim <= 1:
            assert torch.equal(parameter, without[name]), name
        else:
            # lr x decay = 0.1 of the starting weights; float32 rounding.
            wanted = without[name] - 0.1 * start[name]
            torch.testing.assert_close(parameter, wanted, rtol=1e-4, atol=1e-6)


# --- schedule and batches --------------------------------------------------------------------------


def test_schedule_is_torchs_linear_warm_up_times_its_cosine() -> None:
    steps, warm = 40, 8
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = lr_scheduler.ChainedScheduler(
        [
            lr_scheduler.LinearLR(optimizer, 1 / warm, 1.0, total_iters=warm - 1),
            lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps),
        ],
        optimizer,
    )
    ours = Schedule(steps, warm)
    for step in range(steps):
        assert ours.factor(step, born=0) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        theirs.step()


def test_optimiser_warms_each_group_up_from_its_own_thawing(make_spec: MakeSpec) -> None:
    spec = make_spec(lr=1.0)
    network = build(spec.backbone, spec.source, 10, seed=0)
    optimizer = GroupedOptimizer(network, spec, Schedule(steps=10**9, warmup_steps=4))
    optimizer.begin_epoch((None,) * 5 + (1.0,), step=0)
    optimizer.begin_epoch((None,) * 4 + (1.0, 1.0), step=8)
    # The cosine is flat at the start of so many steps: what is left is the warm-up.
    assert optimizer.rate(8)[4:] == pytest.approx([0.25, 1.0])
    assert optimizer.rate(10)[4:] == pytest.approx([0.75, 1.0])


def test_rate_is_never_zero_while_training() -> None:
    for warm in (0, 1, 10):
        assert all(0 < Schedule(10, warm).factor(s, 0) <= 1 for s in range(10))


@pytest.mark.parametrize(
    ("count", "size", "lengths"),
    [
        (10, 4, [4, 4, 2]),
        (8, 4, [4, 4]),
        (9, 4, [4, 5]),  # batch norm cannot train on one image
        (5, 4, [5]),
        (1, 4, [1]),
        (3, 1, [1, 2]),
        (5, 100, [5]),
    ],
)
def test_batches_cover_every_image_once_and_never_end_in_one(
    count: int, size: int, lengths: list[int]
) -> None:
    found = batches(count, size, torch.Generator().manual_seed(0))
    assert [len(b) for b in found] == lengths
    assert sorted(torch.cat(list(found)).tolist()) == list(range(count))


def test_batches_of_one_that_batch_norm_cannot_train_on_are_a_crash_that_says_so(
    make_spec: MakeSpec,
) -> None:
    with pytest.raises(ValueError, match="Expected more than 1 value per channel") as caught:
        run(make_spec(backbone="resnet18", shots=2, batch_size=1))
    assert classify(caught.value) == "crashed"


def test_last_batch_of_one_trains(make_spec: MakeSpec) -> None:
    _, epochs = run(make_spec(shots=5, batch_size=49, epochs=1))
    assert len(epochs) == 1


# --- repeatability ---------------------------------------------------------------------------------


def test_two_runs_are_bitwise_equal(make_spec: MakeSpec) -> None:
    (first, a), (second, b) = run(make_spec()), run(make_spec())
    assert losses(a) == losses(b)
    assert [e.val_loss for e in a] == [e.val_loss for e in b]
    assert all(torch.equal(t, state(second)[n]) for n, t in state(first).items())


@pytest.mark.parametrize("backbone", ["test_resnet", "torchvision:mobilenet_v3_small"])
def test_runs_do_not_depend_on_the_global_generators(backbone: str, make_spec: MakeSpec) -> None:
    """torchvision's MobileNets have dropout, which draws from torch's."""
    spec = make_spec(backbone=backbone, shots=3, epochs=1)
    torch.manual_seed(1)
    np.random.seed(1)
    _, a = run(spec)
    torch.manual_seed(2)
    np.random.seed(2)
    state = torch.get_rng_state()
    _, b = run(spec)
    assert losses(a) == losses(b)
    assert torch.equal(torch.get_rng_state(), state), "the caller's generator was moved"


def test_every_epoch_draws_other_dropout(make_spec: MakeSpec) -> None:
    """At a rate too low to learn anything, with all images in one batch, only dropout tells epochs apart."""
    spec = make_spec(
        backbone="torchvision:mobilenet_v3_small",
        batch_size=50,
        lr=1e-30,
        epochs=2,
    )
    first, second = losses(run(spec)[1])
    assert first != pytest.approx(second, rel=1e-4)


def test_another_seed_gives_another_run(make_spec: MakeSpec) -> None:
    assert losses(run(make_spec(seed=1))[1]) != losses(run(make_spec(seed=2))[1])


def test_stopping_early_gives_the_beginning_of_the_whole(make_spec: MakeSpec) -> None:
    whole = run(make_spec(epochs=3))[1]
    some = []
    for epoch in Training(make_spec(epochs=3), Cpu()):
        some.append(epoch)
        if len(some) == 2:
            break
    assert losses(some) == losses(whole)[:2]
    assert [e.epoch for e in whole] == [0, 1, 2]


# --- ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_absurd_rate_diverges(optimizer: str, make_spec: MakeSpec) -> None:
    with pytest.raises(Diverged, match=r"loss (nan|inf).* in epoch"):
        run(make_spec(lr=1e30, optimizer=optimizer))


def test_predictions_agree_with_the_test_scores(make_spec: MakeSpec) -> None:
    spec = make_spec(lr=1e-2, epochs=3)
    fit, _ = run(spec)
    result = fit.finish(test=True)
    found = result.predictions
    assert found is not None
    split = split_indices(load_target("digits"), spec)
    np.testing.assert_array_equal(found.example, split.test)
    np.testing.assert_array_equal(found.label, load_digits().target[split.test])
    accuracy = float((found.predicted == found.label).mean())
    assert result.metrics["test_accuracy"] == pytest.approx(accuracy)
    assert result.metrics["test_loss"] == pytest.approx(-np.log(found.probability).mean(), rel=1e-5)
    assert ((found.probability > 0.5) <= (found.predicted == found.label)).all()


def test_images_of_the_most_confident_mistakes_are_kept(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.training.fit.MOST_MISTAKES", 3)
    fit, _ = run(make_spec())
    found = fit.finish(test=True).predictions
    assert found is not None
    table = pd.read_parquet(io.BytesIO(predictions_parquet(found)))
    wrong = table[table["label"] != table["predicted"]]
    assert len(wrong) > 3
    assert set(table.index[table["image"].notna()]) == set(wrong["confidence"].nlargest(3).index)
    for row in table[table["image"].notna()].to_dict("records"):
        shown = np.asarray(Image.open(io.BytesIO(row["image"])), dtype=float)
        pixels = load_target("digits").read(np.array([row["example"]]), fit.backbone.input)[0]
        assert np.abs(shown - pixels.permute(1, 2, 0).numpy()).mean() < 5


def test_predictions_of_files_name_them(tmp_path: Path) -> None:
    """And give the probability of each class."""
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(8):
            pixels = random.integers(0, 255, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    spec = TrialSpec(
        f"folder:{tmp_path}", "small_cnn", strategies.LinearProbe(), source="scratch", resolution=8,
        epochs=1,
    )  # fmt: skip
    fit, _ = run(spec)
    found = fit.finish(test=True).predictions
    assert found is not None
    assert found.file is not None
    assert [Path(file).parent.name for file in found.file] == ["cat"] * 2 + ["dog"] * 2
    table = pd.read_parquet(io.BytesIO(predictions_parquet(found)))
    assert list(table["file"]) == list(found.file)
    probabilities = table[["p.0", "p.1"]].to_numpy()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(probabilities.max(axis=1), table["confidence"])
    np.testing.assert_array_equal(probabilities[np.arange(4), found.label], table["probability"])


def test_without_the_test_nothing_of_it_is_reported(make_spec: MakeSpec) -> None:
    fit, _ = run(make_spec())
    result = fit.finish(test=False)
    assert result.outcome == "complete"
    assert result.predictions is None
    assert not [name for name in result.metrics if name.startswith("test")]


def test_callers_time_is_not_training_time(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, skipped = time.perf_counter, [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: real() + skipped[0])
    fit = Training(make_spec(epochs=3), Cpu())
    epochs = []
    for epoch in fit:
        epochs.append(epoch)
        skipped[0] += 1e6
    metrics = fit.finish(test=False).metrics
    assert 0 < metrics["train_seconds"] == epochs[-1].train_seconds < 1e6
    assert metrics["total_seconds"] > 3e6
