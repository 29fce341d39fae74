"""On another processor a trial begins as on this one, to the tolerance that golden numbers are given.

One machine stands for others: oneDNN and ATen can be told to use older instructions only.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import torch

from harness.core.spec import TrialSpec
from harness.training.device import Cpu
from harness.training.loop import Training
from tests.processes import output_of
from tests.trials import MakeSpec

BACKBONES = ("test_resnet", "test_vit", "test_efficientnet")
BILINEAR = ("test_resnet",)
"""Those whose images are resized so; the others' are bicubic."""
OLDER = {
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "sse4.1": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"},
}


def beginnings(specs: list[TrialSpec]) -> list[dict[str, Any]]:
    """Of each trial: its validation images, log-probabilities of the untrained network, and the loss of one
    epoch of two steps."""
    found = []
    for spec in specs:
        fit = Training(spec, Cpu())
        val = fit._read(fit._split.val)
        pixels, before = val.tensor.flatten().tolist(), fit._predict(val).tolist()
        [epoch] = fit
        found.append({"pixels": pixels, "before": before, "loss": epoch.train_loss})
    return found


def first_losses(spec: TrialSpec) -> list[float]:
    """Training and validation loss of the first epoch."""
    epoch = next(iter(Training(spec, Cpu())))
    return [epoch.train_loss, epoch.val_loss]


def main(golden: dict[str, Any], flats: list[dict[str, Any]]) -> None:
    """What an older processor does: the same twice."""
    torch.set_num_threads(1)
    specs = [TrialSpec.from_flat(flat) for flat in flats]
    done = beginnings(specs), beginnings(specs), first_losses(TrialSpec.from_flat(golden))
    print(json.dumps([torch.backends.cpu.get_cpu_capability(), *done]))


@pytest.fixture(scope="module")
def specs(make_spec: MakeSpec) -> list[TrialSpec]:
    found = [make_spec(backbone=name, shots=3, epochs=1) for name in BACKBONES]
    assert all(
        spec.shots and spec.batch_size < 10 * spec.shots <= 2 * spec.batch_size for spec in found
    )
    return found


GOLDEN = [2.349086, 2.299512]
"""Losses of `golden`. On emulated processors they moved by 3e-6 of themselves."""


@pytest.fixture(scope="module")
def golden(make_spec: MakeSpec) -> TrialSpec:
    """One epoch of four steps, on images that every processor makes alike."""
    found = make_spec(backbone="test_efficientnet", lr=1e-3)
    assert found.backbone not in BILINEAR
    return found


def test_losses_are_what_they_were_when_the_test_was_written(golden: TrialSpec) -> None:
    """To notice a change that all other tests let pass."""
    assert first_losses(golden) == pytest.approx(GOLDEN, rel=1e-4)


@pytest.fixture(scope="module")
def here(specs: list[TrialSpec]) -> list[dict[str, Any]]:
    return beginnings(specs)


@pytest.mark.parametrize("instructions", OLDER)
@pytest.mark.slow
def test_beginning_is_the_same_with_older_instructions(
    instructions: str, golden: TrialSpec, specs: list[TrialSpec], here: list[dict[str, Any]]
) -> None:
    asked = json.dumps(golden.flat()), json.dumps([spec.flat() for spec in specs])
    done = output_of(__file__, *asked, more=OLDER[instructions])
    capability, there, again, losses = json.loads(done)
    if instructions == "sse4.1":
        assert capability == "DEFAULT", "the processor's own instructions were used"
    assert there == again, "one setting gives equal bits"
    assert losses == pytest.approx(GOLDEN, rel=1e-4)
    for spec, ours, theirs in zip(specs, here, there, strict=True):
        if instructions == "sse4.1" and spec.backbone in BILINEAR:
            # Without AVX2 torch's bilinear resizing of uint8 rounds in another way: what follows is of other
            # images. Seen in 9 % of the pixels.
            differ = torch.tensor(theirs["pixels"]) - torch.tensor(ours["pixels"])
            assert differ.abs().max() <= 1
            continue
        assert theirs["pixels"] == ours["pixels"]
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
        torch.testing.assert_close(
            torch.tensor(theirs["before"]), torch.tensor(ours["before"]), rtol=1e-4, atol=1e-5
        )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), json.loads(sys.argv[2]))
