"""Try one small network of each family of timm and torchvision at two sizes.

    python -m benchmarks.networks --rows rows.jsonl                 # ten minutes on one core
    python -m benchmarks.networks --rows rows.jsonl --table         # the table of docs/pages/networks.md
    python -m benchmarks.networks --names deit_tiny_distilled_patch16_224 torchvision:alexnet

Weights and images are random. A network passes if, at each size, a linear probe, last block, full fine-tuning
and the middle of gradual unfreezing take an audited step with a finite loss, its gradients agree with those
in contiguous order, its logits are zero if its last group is zero, and weights that are read back from a file
give the same logits.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from timm.models import _registry
from torch.nn import functional as F

from harness.backbones import Backbone, build, check_gradients, read_weights, restore, separate
from harness.core.errors import UserError
from harness.core.spec import TrialSpec
from harness.core.strategies import (
    FullFineTune,
    GradualUnfreezing,
    LastBlock,
    LinearProbe,
    Scales,
    Strategy,
)
from harness.training.audit import Audit
from harness.training.network import check_network
from harness.training.optimizer import GroupedOptimizer, Schedule

CLASSES, IMAGES = 7, 3
SMALL = (64, 96)
"""Sizes that are tried first; for a network that takes neither, the smallest and the largest that it
lists."""
LARGE = 25_000_000
"""Number of parameters from which a network is tried only at the first size that it takes, with two
strategies."""
TORCHVISION = (
    "alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t "
    "mnasnet0_5 mobilenet_v2 mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnext50_32x4d "
    "shufflenet_v2_x0_5 squeezenet1_1 swin_t swin_v2_t vgg11 vgg11_bn vit_b_32 wide_resnet50_2"
).split()


@dataclass(frozen=True)
class Row:
    """Results for one network.

    Attributes:
        name: name of the network.
        family: module and class in its library.
        groups: number of layer groups.
        sizes: sizes at which it trained.
        heads: number of classifiers.
        refused: why it is refused, at all or at some sizes; "" if it is not.
        failed: a check that it did not pass; "" if it passed all checks.
        seconds: seconds that the checks took.
    """

    name: str
    family: str = ""
    groups: int = 0
    sizes: tuple[int, ...] = ()
    heads: int = 0
    refused: str = ""
    failed: str = ""
    seconds: float = 0.0


def members() -> list[str]:
    """The smallest network of each class in each module of timm, and one of each family of torchvision."""
    least: dict[tuple[str, str], tuple[int, str]] = {}
    for name in timm.list_models():
        with torch.device("meta"):
            model = timm.create_model(name)
        key = (_registry._model_to_module[name], type(model).__name__)
        count = sum(p.numel() for p in model.parameters())
        least[key] = min(least.get(key, (count, name)), (count, name))
    return [name for _, (_, name) in sorted(least.items())] + [
        f"torchvision:{n}" for n in TORCHVISION
    ]


def try_network(name: str) -> Row:
    """Try one network at two sizes."""
    began, refused, failed = time.perf_counter(), "", ""
    groups, heads, family, done = 0, 0, "", list[int]()
    wanted = list(SMALL)
    for size in wanted:
        try:
            spec = _spec(name, size, LinearProbe())
            backbone = build(name, "scratch", CLASSES, 0, resolution=size)
            groups, heads = len(backbone.groups), len(backbone.heads)
            kind = type(backbone.model)
            module = _registry._model_to_module.get(name, kind.__module__.rpartition(".")[2])
            family = f"{module}.{kind.__name__}"
            check_network(backbone, spec)
            check_gradients(backbone, spec.backbone)
            _check(backbone, name, size)
            done.append(size)
            if _is_large(backbone):
                break
        except UserError as error:
            refused = refused or str(error)
            if size == SMALL[-1] and not done:
                wanted += _named(str(error))
        except Exception as error:  # failures are results of the sweep
            failed = failed or f"{size} px: {type(error).__name__}: {str(error).splitlines()[0:1]}"
    seconds = round(time.perf_counter() - began, 1)
    return Row(name, family, groups, tuple(done), heads, refused, failed, seconds)


def _is_large(backbone: Backbone) -> bool:
    return sum(p.numel() for p in backbone.model.parameters()) > LARGE


def _named(refusal: str) -> list[int]:
    """The smallest and the largest of the sizes that a refusal lists, without needlessly large ones."""
    _, _, listed = refusal.partition("resolution can be ")
    sizes = [int(s) for s in listed.partition(" (")[0].split(", ") if s.isdigit()]
    small = [s for s in sizes if s <= 256]
    return sorted({*small[:1], *small[-1:]}) or sizes[:1]


def _spec(name: str, size: int, strategy: Strategy) -> TrialSpec:
    return TrialSpec(
        "digits", name, strategy, "scratch", resolution=size, lr=1e-3, weight_decay=0.0
    )


def _check(backbone: Backbone, name: str, size: int) -> None:
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, 3, size, size, generator=draw)
    images = images.contiguous(memory_format=backbone.layout)
    count = len(backbone.groups)
    assert count >= 3, f"{count} groups"
    whole = [n for g in backbone.groups for n in (*g.parameters, *g.buffers)]
    own = [n for n, _ in (*backbone.model.named_parameters(), *backbone.model.named_buffers())]
    assert sorted(whole) == sorted(own), "groups do not cover every tensor once"
    plans: list[tuple[Strategy, int]] = [(LinearProbe(), 0), (FullFineTune(), 0)]
    if not _is_large(backbone):
        plans += [(LastBlock(), 0), (GradualUnfreezing(), count // 2)]
    for strategy, epoch in plans:
        _step(backbone, _spec(name, size, strategy), strategy.lr_scales(count, epoch), images)
    _check_file(backbone, name, images)
    with torch.no_grad():
        for tensor in backbone.groups[-1].parameters.values():
            tensor.zero_()
        logits = backbone.model.eval()(images)
    assert torch.equal(logits, torch.zeros_like(logits)), (
        "not all of the classifier is in the last group"
    )


def _step(backbone: Backbone, spec: TrialSpec, scales: Scales, images: torch.Tensor) -> None:
    audit = Audit(backbone.groups)
    audit.begin_epoch(scales)
    optimizer = GroupedOptimizer(backbone, spec, Schedule(2, 0))
    optimizer.begin_epoch(scales, 0)
    logits = backbone.model(images)
    assert isinstance(logits, torch.Tensor), f"train() gives a {type(logits).__name__}"
    assert logits.shape == (IMAGES, CLASSES), f"train() gives {tuple(logits.shape)}"
    loss = F.cross_entropy(logits, torch.arange(IMAGES))
    assert torch.isfinite(loss), "the loss is not finite"
    optimizer.step(loss, 0)
    audit.finish()


def _check_file(backbone: Backbone, name: str, images: torch.Tensor) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.safetensors")
        save_file(separate(backbone.model.state_dict()), file)
        # Not in inference mode: torch multiplies by weights that were created there in another order.
        again = restore(name, read_weights(file), CLASSES, backbone.input).eval()
    with torch.inference_mode():
        found, wanted = again(images), backbone.model.eval()(images)
    # Logits may not be finite after a step.
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=0.0, equal_nan=True)


def sweep(names: list[str]) -> Iterator[Row]:
    """Try the networks in child processes, so that one that crashes also gives a row."""
    left = list(names)
    while left:
        command = [sys.executable, "-m", "benchmarks.networks", "--child", "--names", *left]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for line in child.stdout:
                if line.startswith("{"):
                    row = json.loads(line)
                    left.remove(row["name"])
                    yield Row(**{**row, "sizes": tuple(row["sizes"])})
        if left and child.returncode:
            yield Row(left.pop(0), failed=f"the process ended with {child.returncode}")


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| family | tried | classifiers | groups | trained at, px | not accepted |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda r: (r.name.startswith("torchvision:"), r.family, r.name)):
        _, sized, listed = row.refused.partition("resolution can be ")
        why = row.failed or (sized + listed.partition(" (")[0] if sized else row.refused)
        sizes = ", ".join(map(str, row.sizes)) or "no"
        lines.append(
            f"| {row.family or '?'} | `{row.name}` | {row.heads or ''} | {row.groups or ''} | {sizes} | "
            f"{f'64: {why}' if row.sizes and why else why} |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", nargs="+", help="networks (default: one of each family)")
    parser.add_argument("--rows", type=Path, help="file to append rows to")
    parser.add_argument(
        "--table", action="store_true", help="print the table of the file, without trials"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.table:
        kept = [json.loads(line) for line in options.rows.read_text().splitlines()]
        print(table([Row(**{**row, "sizes": tuple(row["sizes"])}) for row in kept]))
        return
    if options.child:
        for name in options.names:
            print(json.dumps(asdict(try_network(name))), flush=True)
        return
    for row in sweep(options.names or members()):
        line = json.dumps(asdict(row))
        print(line, flush=True)
        if options.rows:
            with options.rows.open("a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
