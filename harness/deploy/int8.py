"""Export of a model as ONNX with weights and activations of 8 bits, for smaller files and faster CPUs.

Static quantisation by onnxruntime: scales of the weights per channel, those of activations from training
images. Weights are signed and activations unsigned, which x86 processors with VNNI instructions multiply
several times faster than float32; on those without, sums can saturate, so accuracy should be checked there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.core.errors import UserError, first_line
from harness.data import Examples
from harness.deploy.model import Model
from harness.deploy.onnx import FILE, logits_of, quiet, session

INT8 = "model.int8.onnx"
OPERATORS = ["Conv", "MatMul", "Gemm"]
"""What is quantised: nearly all weights and multiply-adds. If softmax and norms were too, as by default,
logits of vision transformers would be far off."""
CALIBRATED_ON = 100
"""Largest number of training images from which the scales of activations are taken."""


class _OneByOne:
    """Examples in the form in which onnxruntime asks for them (`CalibrationDataReader`)."""

    def __init__(self, examples: torch.Tensor, name: str) -> None:
        self._rest, self._name = iter(examples.split(1)), name

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        example = next(self._rest, None)
        return None if example is None else {self._name: example.numpy()}


def write_int8(
    model: Model,
    folder: Path,
    calibration: torch.Tensor,
    val: Examples,
    before: float,
    max_loss: float,
) -> dict[str, Any]:
    """Write model.int8.onnx from the model.onnx in the folder.

    Args:
        model: the model.
        folder: of both files.
        calibration: n rows of training examples.
        val: validation images.
        before: accuracy of the model on them.
        max_loss: largest allowed fall of that accuracy, in percentage points.

    Returns:
        Number of calibration images, and validation accuracy of both models.

    Raises:
        UserError: if the network cannot be quantised, or loses more than is allowed; no file remains.
    """
    path = folder / INT8
    try:
        _quantise(folder / FILE, path, model.prepare(calibration))
        logits = logits_of(session(path), model.prepare(val.tensor))
    except Exception as error:  # onnx and onnxruntime raise many kinds
        path.unlink(missing_ok=True)
        raise UserError(
            f"the network cannot be quantised, so there is no {INT8}: {first_line(error)}"
        ) from error
    after = float((logits.argmax(1) == val.labels).double().mean())
    lost = 100 * (before - after)
    if not lost <= max_loss:
        path.unlink()
        raise UserError(
            f"quantised to 8 bits, the network loses {lost:.1f} points of validation accuracy ({before:.1%} "
            f"to {after:.1%}), more than --max-loss {max_loss:g}, so there is no {INT8}"
        )
    return {
        "calibration_images": len(calibration),
        "val_accuracy": {"float32": before, "int8": after},
    }


def _quantise(source: Path, path: Path, examples: torch.Tensor) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, quiet():
        prepared = Path(folder, FILE)  # shapes known, and equal weights stored once
        quant_pre_process(str(source), str(prepared))
        quantize_static(
            str(prepared),
            str(path),
            _OneByOne(examples, session(source).get_inputs()[0].name),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            op_types_to_quantize=OPERATORS,
        )
