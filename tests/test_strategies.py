"""Each strategy does what its paper says, held against a loop by hand, timm, PEFT or scikit-learn."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest
import timm
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torchvision.models import SwinTransformer, VisionTransformer

from harness import strategies
from harness.backbones import build, merge_adapters
from harness.backbones.adapters import add_lora
from harness.core.results import EpochResult
from harness.core.spec import TrialSpec
from harness.search.preflight import check_study
from harness.training.device import Cpu
from harness.training.loop import Fit, Training, start
from harness.training.optimizer import GroupedOptimizer, Schedule
from tests.by_hand import entries_by_hand, images_by_hand, model_by_hand, orders_by_hand
from tests.refusals import refused
from tests.trials import MakeSpec, study_of

State = dict[str, torch.Tensor]
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
STAGES = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc")
"""Modules of timm's test_resnet; the first two are the stem."""


def run(spec: TrialSpec) -> tuple[Fit, list[EpochResult], State]:
    """A trial to its end without the test, and a copy of all tensors from before."""
    fit = start(spec, Cpu())
    before = tensors(fit)
    return fit, list(fit), before


def tensors(fit: Fit) -> State:
    model = fit._backbone.model
    both = [*model.named_parameters(), *model.named_buffers()]
    return {n: t.detach().clone() for n, t in both}


def changed(fit: Fit, before: State) -> set[str]:
    return {n for n, t in tensors(fit).items() if not torch.equal(t, before[n])}


def parameter_names(fit: Fit) -> set[str]:
    return {n for n, _ in fit._backbone.model.named_parameters()}


def head_names(fit: Fit) -> set[str]:
    return set(fit._backbone.groups[-1].parameters)


@pytest.fixture
def learned(tmp_path: Path) -> Callable[[str], str]:
    """A source whose norms are not those of a fresh network: timm's residual branches begin at zero, which
    keeps gradients away from what is inside them."""

    def save(backbone: str) -> str:
        torch.manual_seed(11)
        model = timm.create_model(backbone)
        for module in model.modules():
            if isinstance(module, NORMS):
                nn.init.uniform_(module.weight, 0.5, 1.5)
        torch.save(model.state_dict(), tmp_path / "learned.pt")
        return f"file:{tmp_path / 'learned.pt'}"

    return save


# --- by hand ---------------------------------------------------------------------------------------


def same_movement(ours: Fit, theirs: nn.Module, before: State, tolerance: float) -> None:
    """Every parameter went the same way; the tolerance is a share of the way, beside float32 rounding."""
    own = dict(ours._backbone.model.named_parameters())
    for name, parameter in theirs.named_parameters():
        allowed = tolerance * (parameter - before[name]).norm() + 1e-6 * before[name].norm()
        assert (own[name] - parameter).norm() <= allowed, name


# --- probe first, then more ------------------------------------------------------------------------


def train_in_two_phases(
    spec: TrialSpec, head_epochs: int, lower: float, later: tuple[str, ...]
) -> tuple[Any, list[float]]:
    """The head by itself, then the modules named in `later` as well, each with an AdamW of its own."""
    model = model_by_hand(spec)
    images, labels = images_by_hand(spec, "train")
    per_epoch = math.ceil(len(labels) / spec.batch_size)
    steps, first = spec.epochs * per_epoch, head_epochs * per_epoch
    warm = round(spec.warmup * steps)
    others = [getattr(model, name) for name in later]
    head = torch.optim.AdamW(entries_by_hand([model.fc], spec.weight_decay))
    rest = torch.optim.AdamW(entries_by_hand(others, spec.weight_decay))
    step, losses = 0, []
    for order in orders_by_hand(spec, len(labels)):
        model.eval()  # what is frozen normalises by its stored statistics
        model.fc.train()
        if step >= first and spec.batch_norm == "train":
            for module in others:
                module.train()
        total = 0.0
        for rows in order:
            cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
            scale = 1.0 if step < first else lower
            for optimizer, born in ((head, 0), (rest, first)):
                for entry in optimizer.param_groups:
                    entry["lr"] = spec.lr * scale * cosine * min(1, (step - born + 1) / warm)
            loss = F.cross_entropy(model(images[rows]), labels[rows])
            model.zero_grad()
            loss.backward()
            head.step()
            if step >= first:
                rest.step()
            total += loss.item() * len(rows)
            step += 1
        losses.append(total / len(labels))
    return model, losses


@pytest.mark.parametrize("batch_norm", ["auto", "train"])
@pytest.mark.parametrize(
    ("strategy", "later"),
    [
        (strategies.TwoPhase(head_epochs=2, lower=0.3), ("layer4",)),
        (strategies.LPFT(head_epochs=2, lower=0.3), STAGES[:-1]),
        (strategies.LPFT(head_epochs=1, lower=1.0), STAGES[:-1]),
    ],
    ids=["two-phase", "lp-ft", "lp-ft without a lower rate"],
)
def test_head_first_equals_two_phases_by_hand(
    strategy: strategies.TwoPhase | strategies.LPFT,
    later: tuple[str, ...],
    batch_norm: str,
    make_spec: MakeSpec,
) -> None:
    spec = make_spec(
        strategy=strategy,
        batch_norm=batch_norm,
        epochs=4,
        warmup=0.2,
        lr=1e-3,
        weight_decay=0.05,
    )
    fit, epochs, before = run(spec)
    model, losses = train_in_two_phases(spec, strategy.head_epochs, strategy.lower, later)
    # Rounding of another normalisation and a fused optimiser; Adam divides by small gradients.
    assert [e.train_loss for e in epochs] == pytest.approx(losses, rel=3e-4)
    same_movement(fit, model, before, tolerance=0.05)
    moved = {n.split(".")[0] for n in changed(fit, before)}
    assert moved == {*later, "fc"}


# --- the pull of L2-SP -----------------------------------------------------------------------------


def test_infinite_pull_keeps_the_starting_weights_bitwise(make_spec: MakeSpec) -> None:
    fit, _, before = run(make_spec(strategy=strategies.L2SP(math.inf), lr=1e-2))
    assert changed(fit, before) & parameter_names(fit) == head_names(fit)


@pytest.mark.parametrize("weight", [1e-6, 30.0, 3000.0])
def test_finite_pull_is_the_proximal_step_in_closed_form(
    weight: float, make_spec: MakeSpec, learned: Callable[[str], str]
) -> None:
    """After each SGD step w minimises pull/2 |w - w0|^2 + |w - step|^2 / (2 lr); the head decays instead."""
    spec = make_spec(
        strategy=strategies.L2SP(weight),
        source=learned("test_resnet"),
        optimizer="sgd",
        lr=3e-3,
        weight_decay=0.1,
        warmup=0.0,
        batch_norm="frozen",  # 16 values per channel in the last block would enlarge every rounding
    )
    fit, _, before = run(spec)
    model = model_by_hand(spec).eval()
    body = [p for n, p in model.named_parameters() if not n.startswith("fc.")]
    anchors = [p.detach().clone() for p in body]
    optimizer = torch.optim.SGD(
        [{"params": body, "weight_decay": 0.0}, *entries_by_hand([model.fc], 0.1)],
        lr=3e-3,
        momentum=0.9,
    )
    images, labels = images_by_hand(spec, "train")
    step, steps = 0, 8
    for order in orders_by_hand(spec, len(labels)):
        for rows in order:
            lr = 3e-3 * 0.5 * (1 + math.cos(math.pi * step / steps))
            for entry in optimizer.param_groups:
                entry["lr"] = lr
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
            with torch.no_grad():
                for parameter, anchor in zip(body, anchors, strict=True):
                    parameter.copy_((parameter + lr * weight * anchor) / (1 + lr * weight))
            step += 1
    # Differently rounded inputs, eight steps with momentum.
    same_movement(fit, model, before, tolerance=0.02)


# --- features into scikit-learn --------------------------------------------------------------------


def features_by_hand(spec: TrialSpec, part: str) -> tuple[np.ndarray, np.ndarray]:
    model = model_by_hand(spec).eval()
    images, labels = images_by_hand(spec, part)
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images), pre_logits=True)
    return features.double().numpy(), labels.numpy()


def probabilities_by_hand(
    classifier: str, setting: float, scaled: dict[str, np.ndarray], labels: np.ndarray, part: str
) -> np.ndarray:
    if classifier == "logistic":
        model = LogisticRegression(C=setting, max_iter=2000).fit(scaled["train"], labels)
        found: np.ndarray = model.predict_proba(scaled[part])
    else:
        k = int(setting)
        neighbours = KNeighborsClassifier(k).fit(scaled["train"], labels)
        votes = neighbours.predict_proba(scaled[part]) * k
        found = (votes + 1) / (k + 10)  # one more vote for each class
    return found


@pytest.mark.parametrize(
    ("classifier", "grid"),
    [("logistic", tuple(10.0**k for k in range(-4, 4))), ("knn", (1, 3, 5, 9, 15))],
)
def test_feature_transfer_is_scikit_learn_on_timms_features(
    classifier: Any, grid: tuple[float, ...], make_spec: MakeSpec
) -> None:
    spec = make_spec(
        strategy=strategies.FeatureTransfer(classifier), shots=10, val_shots=10, test_shots=12
    )
    fit, (epoch,), before = run(spec)
    result = fit.finish(test=True)
    assert not changed(fit, before)

    parts = {part: features_by_hand(spec, part) for part in ("train", "val", "test")}
    centre = parts["train"][0].mean(axis=0)
    spread = np.sqrt((parts["train"][0] - centre).var(axis=0).mean())
    scaled = {
        part: (features - centre) / spread
        if classifier == "logistic"
        else features / np.linalg.norm(features, axis=1, keepdims=True)
        for part, (features, _) in parts.items()
    }
    labels, val_labels = parts["train"][1], parts["val"][1]
    scores = []
    for setting in grid:  # best on validation; ties go to the smaller loss, then to the earlier one
        p = probabilities_by_hand(classifier, setting, scaled, labels, "val")
        loss = -np.log(p[np.arange(len(val_labels)), val_labels]).mean()
        scores.append(((p.argmax(1) == val_labels).mean(), -loss))
    best = max(range(len(grid)), key=lambda i: (*scores[i], -i))
    assert epoch.val_accuracy == pytest.approx(scores[best][0])
    # The harness keeps features in float32; the solver of the logistic regression stops at 1e-4.
    assert epoch.val_loss == pytest.approx(-scores[best][1], rel=1e-3)
    p = probabilities_by_hand(classifier, grid[best], scaled, labels, "test")
    assert result.predictions is not None
    np.testing.assert_array_equal(result.predictions.predicted, p.argmax(1))
    wanted = p[np.arange(len(p)), parts["test"][1]]
    np.testing.assert_allclose(result.predictions.probability, wanted, rtol=0.01, atol=1e-4)
    assert result.metrics["test_accuracy"] == pytest.approx(
        (p.argmax(1) == parts["test"][1]).mean()
    )


# --- adapters --------------------------------------------------------------------------------------

needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="extra lora is not installed")


@pytest.fixture
def lora_spec(make_spec: MakeSpec) -> TrialSpec:
    return make_spec(backbone="test_vit", strategy=strategies.LoRA(rank=4), lr=1e-2)


@needs_peft
def test_adapters_start_as_the_identity() -> None:
    plain, adapted = (
        build("test_vit", "scratch", 10, seed=0, resolution=32, lora_rank=rank) for rank in (0, 4)
    )
    torch.manual_seed(0)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(plain.model.eval()(images), adapted.model.eval()(images))


@needs_peft
def test_adapters_of_the_stated_rank_and_the_head_are_all_that_moves(lora_spec: TrialSpec) -> None:
    fit, _, before = run(lora_spec)
    adapters = {n for n in parameter_names(fit) if "lora" in n}
    # Six blocks, each with two adapted layers of two matrices.
    assert len(adapters) == 6 * 2 * 2
    assert all(min(before[n].shape) == 4 for n in adapters)
    assert changed(fit, before) == adapters | head_names(fit)
    assert fit.finish(test=False).outcome == "complete"


@needs_peft
@pytest.mark.filterwarnings(
    # 2026-11: timm 1.0.31 with torch 2.15, when Swin's position tables are resized
    "ignore:Using a non-tuple sequence for multidimensional indexing:UserWarning",
    "ignore:torch.searchsorted:UserWarning",
)
@pytest.mark.parametrize(
    "name",
    ["test_vit", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "torchvision:swin_t"],
)
def test_network_that_would_pass_by_its_adapters_gets_none(name: str) -> None:
    """Some attention layers use the weights of a linear layer without calling it."""
    network = build(name, "scratch", 10, seed=0, resolution=64, lora_rank=2)
    if name == "swinv2_tiny_window8_256":
        assert network.tuned_names("lora") == set(network.groups[-1].parameters)
        return
    torch.manual_seed(0)
    images = torch.randn(1, 3, 64, 64)
    model = network.model.eval()
    with torch.no_grad():
        for kind in ("qkv", "proj"):
            plain = model(images)
            for n, parameter in model.named_parameters():
                if f"{kind}." in n and n.endswith(("lora_B", "lora_B.default.weight")):
                    parameter.normal_()
            used = not torch.equal(model(images), plain)
            assert used, f"the adapters of {kind} are passed by"


@pytest.mark.parametrize(
    ("make", "layers"),
    [
        (lambda: VisionTransformer(32, 8, 2, 2, 8, 16, num_classes=3), 2),
        (lambda: SwinTransformer([2, 2], 8, [1, 1], [2, 2], [4, 4], num_classes=3), 2),
    ],
    ids=["ViT", "Swin"],
)
def test_adapters_of_torchvisions_attention_are_its_weights_plus_twice_their_product(
    make: Callable[[], nn.Module], layers: int
) -> None:
    torch.manual_seed(0)
    plain = make().eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for parameter in plain.parameters():  # the ViT's head begins as zero
            parameter.normal_(std=0.3)
        before = plain(images)
        adapted = add_lora(copy.deepcopy(plain), 2)
        assert torch.equal(adapted(images), before)
        products = {}
        for name, b in list(adapted.named_parameters()):
            if name.endswith("lora_B"):
                a = adapted.get_parameter(name.replace("lora_B", "lora_A"))
                assert (a.shape[0], b.shape[1]) == (2, 2)
                weight = name.replace("parametrizations.", "").replace(".0.lora_B", "")
                products[weight] = b.normal_() @ a
        assert len(products) == 2 * layers
        by_hand = copy.deepcopy(plain)
        for weight, product in products.items():
            by_hand.get_parameter(weight).add_(2 * product)
        after = adapted(images)
        torch.testing.assert_close(after, by_hand(images), rtol=1e-4, atol=1e-4)
        assert (after - before).abs().max() > 1e-2
        merged = merge_adapters(copy.deepcopy(adapted))
        assert merged.state_dict().keys() == plain.state_dict().keys()
        torch.testing.assert_close(merged(images), after)
        assert torch.equal(adapted(images), after), "the copy shares nothing"


# --- which groups, which parameters ----------------------------------------------------------------


def groups_moved(fit: Fit, before: State) -> list[bool]:
    names = changed(fit, before)
    return [bool(names & {*g.parameters, *g.buffers}) for g in fit._backbone.groups]


@pytest.mark.parametrize(
    ("strategy", "moved"),
    [
        *((strategies.Surgical(block), {block % 6, 5}) for block in (0, 2, -2, -6)),
        *((strategies.LastK(k), {g for g in range(6) if g >= 6 - k}) for k in (1, 2, 4, 6, 99)),
    ],
    ids=str,
)
def test_only_the_stated_groups_move(
    strategy: strategies.Strategy, moved: set[int], make_spec: MakeSpec
) -> None:
    fit, _, before = run(make_spec(strategy=strategy))
    assert groups_moved(fit, before) == [g in moved for g in range(6)]
    fit.finish(test=False)


@pytest.mark.parametrize("block", [6, -7])
def test_surgery_on_a_block_that_is_not_there_is_refused_before_the_study_starts(
    block: int, make_spec: MakeSpec
) -> None:
    with refused(f"on test_resnet: Surgical: block {block} of a backbone with 6 groups"):
        check_study(study_of(make_spec(strategy=strategies.Surgical(block))))


def norm_parameters(model: nn.Module) -> set[str]:
    return {
        f"{path}.{n}"
        for path, module in model.named_modules()
        if isinstance(module, NORMS)
        for n, _ in module.named_parameters()
    }


@pytest.mark.parametrize("strategy", [strategies.NormOnly(), strategies.BiasOnly()])
@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "test_vit"])
def test_norms_or_biases_and_the_head_are_all_that_moves(
    backbone: str,
    strategy: strategies.Strategy,
    make_spec: MakeSpec,
    learned: Callable[[str], str],
) -> None:
    spec = make_spec(backbone=backbone, source=learned(backbone), strategy=strategy, lr=1e-2)
    fit, _, before = run(spec)
    biases = {n for n in parameter_names(fit) if n.endswith("bias")}
    wanted = biases if strategy.tuned == "bias" else norm_parameters(fit._backbone.model)
    assert changed(fit, before) & parameter_names(fit) == wanted | head_names(fit)
    fit.finish(test=False)


@pytest.mark.parametrize(
    "name", ["convnext_atto", "densenet121", "torchvision:convnext_tiny", "torchvision:vit_b_16"]
)
def test_norms_and_biases_of_other_families_are_all_found(name: str) -> None:
    """torchvision's ViT has biases called in_proj_bias."""
    network = build(name, "scratch", 10, seed=0)
    head = set(network.groups[-1].parameters)
    every = {n for n, _ in network.model.named_parameters()}
    assert network.tuned_names("norm") == norm_parameters(network.model) | head
    assert network.tuned_names("bias") == {n for n in every if n.endswith("bias")} | head
    assert network.tuned_names("all") == every


# --- statistics of batch norms ---------------------------------------------------------------------


def statistics(state: State) -> State:
    return {n: t for n, t in state.items() if n.rpartition(".")[2].startswith("running_")}


@pytest.mark.parametrize(
    "changes",
    [{"batch_norm": "frozen"}, {"strategy": strategies.LPFT(head_epochs=1), "epochs": 3}],
    ids=["asked for", "unfrozen later"],
)
def test_frozen_statistics_stay_while_everything_trains(
    changes: dict[str, Any], make_spec: MakeSpec
) -> None:
    fit, _, before = run(make_spec(**changes))
    assert changed(fit, before) == parameter_names(fit)


def test_trained_statistics_all_move(make_spec: MakeSpec) -> None:
    fit, _, before = run(make_spec(batch_norm="train"))
    assert changed(fit, before) >= set(statistics(before))


@final
@dataclass(frozen=True)
class LastBlockThenAll(strategies.Strategy):
    """The last block from the first epoch on, everything from the second."""

    def lr_scales(self, num_groups: int, epoch: int) -> strategies.Scales:
        first = (None,) * (num_groups - 2) + (1.0, 1.0)
        return (1.0,) * num_groups if epoch else first


def test_by_default_only_groups_that_train_from_the_first_epoch_follow_the_batch(
    make_spec: MakeSpec,
) -> None:
    fit, _, before = run(make_spec(strategy=LastBlockThenAll(), epochs=3))
    moved = changed(fit, before) & set(statistics(before))
    assert moved == set(statistics(before)) & set(fit.backbone.groups[-2].buffers)
    assert moved


def test_strategies_that_unfreeze_nothing_later_train_alike_by_default_and_with_train(
    make_spec: MakeSpec,
) -> None:
    one, other = (run(make_spec(batch_norm=b))[0] for b in ("auto", "train"))
    assert all(torch.equal(t, tensors(other)[n]) for n, t in tensors(one).items())


def test_a_fall_of_accuracy_when_groups_are_unfrozen_is_noted(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = {0: 0.5, 1: 0.8, 2: 0.3, 3: 0.1}  # unfrozen in the third epoch only
    judge = Training._judge
    monkeypatch.setattr(
        Training,
        "_judge",
        lambda self, epoch, *rest: replace(
            judge(self, epoch, *rest), val_accuracy=accuracies[epoch]
        ),
    )
    fit = Training(make_spec(strategy=strategies.LPFT(head_epochs=2), epochs=4), Cpu())
    assert len(list(fit)) == 4
    assert fit.finish(test=False).notes["unfreezing"] == "80.0 to 30.0 % in epoch 3"


@pytest.mark.parametrize("strategy", [strategies.LinearProbe(), strategies.FullFineTune()])
def test_re_estimated_statistics_are_those_of_torch_and_then_kept(
    strategy: strategies.Strategy, make_spec: MakeSpec
) -> None:
    spec = make_spec(strategy=strategy, batch_norm="reestimate")
    fit, _, before = run(spec)
    model = model_by_hand(spec)
    images, _ = images_by_hand(spec, "train")
    torch.optim.swa_utils.update_bn([images], model)
    wanted = statistics(dict(model.named_buffers()))
    assert wanted.keys() == statistics(before).keys()
    for name, value in wanted.items():
        # The same averages over differently rounded inputs.
        torch.testing.assert_close(tensors(fit)[name], value, rtol=1e-3, atol=1e-5)


def test_re_estimated_statistics_are_plain_averages_over_all_training_images(
    make_spec: MakeSpec,
) -> None:
    """With 260 images the network computes in two batches, and none of them may count for more."""
    spec = make_spec(strategy=strategies.LinearProbe(), batch_norm="reestimate", shots=26, epochs=1)
    fit, _, _ = run(spec)
    model, seen = model_by_hand(spec), []
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model.train()(images_by_hand(spec, "train")[0])
    activations = seen[0].transpose(0, 1).flatten(1)
    ours = next(m for m in fit._backbone.model.modules() if isinstance(m, nn.BatchNorm2d))
    assert ours.running_mean is not None
    assert ours.running_var is not None
    torch.testing.assert_close(ours.running_mean, activations.mean(1), rtol=1e-3, atol=1e-5)
    # Within two batches of 130 the variance leaves out that between them: about 1 / 130.
    torch.testing.assert_close(ours.running_var, activations.var(1), rtol=0.02, atol=1e-5)


# --- schedules -------------------------------------------------------------------------------------


def rates_of(spec: TrialSpec, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The rates that torch's optimiser had at each step of a trial."""
    seen: list[float] = []
    real = GroupedOptimizer.step

    def spying(self: GroupedOptimizer, loss: torch.Tensor, step: int) -> None:
        real(self, loss, step)
        seen.extend({entry["lr"] for entry in self._torch.param_groups})

    monkeypatch.setattr(GroupedOptimizer, "step", spying)
    list(Training(spec, Cpu()))
    return seen


def test_one_cycle_is_torchs_step_by_step(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(schedule="one_cycle", lr=3e-3, epochs=4, shots=5)
    found = rates_of(spec, monkeypatch)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
    theirs = lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=16)
    wanted = []
    for _ in range(16):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert found == pytest.approx(wanted, rel=1e-9)
    assert max(found) == pytest.approx(3e-3, rel=0.05)


@pytest.mark.parametrize("steps", [7, 10, 100, 333])
def test_one_cycle_is_torchs_for_any_length(steps: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    theirs = lr_scheduler.OneCycleLR(optimizer, 1.0, steps, cycle_momentum=False)
    ours = Schedule(steps, warmup_steps=5, kind="one_cycle")
    for step in range(steps):
        wanted = optimizer.param_groups[0]["lr"]
        assert ours.factor(step, born=0) == pytest.approx(wanted, rel=1e-9), step
        optimizer.step()
        if step < steps - 1:
            theirs.step()


def test_constant_rate_warms_up_and_stays(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rates_of(make_spec(schedule="constant", lr=8e-3, warmup=0.5), monkeypatch)
    assert found == pytest.approx([2e-3, 4e-3, 6e-3, 8e-3, 8e-3, 8e-3, 8e-3, 8e-3])


def test_rate_left_out_is_the_usual_one_of_the_optimiser(make_spec: MakeSpec) -> None:
    parameter = [nn.Parameter(torch.zeros(1))]
    assert make_spec(optimizer="adamw").lr == torch.optim.AdamW(parameter).defaults["lr"]
    assert make_spec(optimizer="sgd").lr == make_spec(optimizer="sgd").flat()["lr"] == 1e-2
    assert make_spec(optimizer="sgd", lr=0.5).lr == 0.5


# --- what is reported of a strategy ----------------------------------------------------------------


def parameters_of(*stages: str) -> int:
    model = timm.create_model("test_resnet", num_classes=10)
    return sum(p.numel() for stage in stages for p in getattr(model, stage).parameters())


@pytest.mark.parametrize(
    ("strategy", "depth", "trained"),
    [
        (strategies.FeatureTransfer("knn"), 0.0, ()),
        (strategies.LinearProbe(), 1 / 6, ("fc",)),
        (strategies.LastBlock(), 2 / 6, ("layer4", "fc")),
        (strategies.LastK(3), 3 / 6, ("layer3", "layer4", "fc")),
        (strategies.GradualUnfreezing(1), 2 / 6, ("layer4", "fc")),  # two epochs
        (strategies.TwoPhase(head_epochs=1), 2 / 6, ("layer4", "fc")),
        (strategies.TwoPhase(head_epochs=2), 1 / 6, ("fc",)),  # the second phase is never reached
        (strategies.LPFT(head_epochs=1), 1.0, STAGES),
        (strategies.Surgical(0), 1.0, ("conv1", "bn1", "fc")),
        (strategies.Surgical(3), 3 / 6, ("layer3", "fc")),
        (strategies.FullFineTune(), 1.0, STAGES),
        (strategies.L2SP(0.1), 1.0, STAGES),
    ],
    ids=lambda value: str(value) if isinstance(value, strategies.Strategy) else "",
)
def test_depth_and_share_of_what_was_trained(
    strategy: strategies.Strategy, depth: float, trained: tuple[str, ...], make_spec: MakeSpec
) -> None:
    fit, _, _ = run(make_spec(strategy=strategy, shots=2))
    metrics = fit.finish(test=False).metrics
    assert metrics["trained_depth"] == pytest.approx(depth)
    share = parameters_of(*trained) / parameters_of(*STAGES)
    assert metrics["trainable_share"] == pytest.approx(share)


def test_share_of_norms_counts_norms_and_the_head(make_spec: MakeSpec) -> None:
    fit, _, _ = run(make_spec(strategy=strategies.NormOnly(), shots=2))
    model = timm.create_model("test_resnet", num_classes=10)
    norms = norm_parameters(model)
    counted = sum(p.numel() for n, p in model.named_parameters() if n in norms)
    metrics = fit.finish(test=False).metrics
    share = (counted + parameters_of("fc")) / parameters_of(*STAGES)
    assert metrics["trainable_share"] == pytest.approx(share)
    assert metrics["trained_depth"] == 1.0


@needs_peft
def test_depth_of_adapters_is_that_of_the_deepest_block_with_one(lora_spec: TrialSpec) -> None:
    """test_vit: embedding, six blocks, head. The embedding has no adapter and trains nothing."""
    fit, _, _ = run(lora_spec)
    metrics = fit.finish(test=False).metrics
    assert metrics["trained_depth"] == pytest.approx(7 / 8)
    model: Any = timm.create_model("test_vit", num_classes=10, img_size=32)
    width = model.embed_dim
    head = width * 10 + 10
    adapters = 6 * 4 * ((width + 3 * width) + (width + width))  # rank x (in + out) of qkv and proj
    every = sum(p.numel() for p in model.parameters()) + adapters
    assert metrics["trainable_share"] == pytest.approx((adapters + head) / every)
