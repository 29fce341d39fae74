"""Export of a model as ONNX, for runtimes without torch, with a check on examples."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from harness.backbones import as_graph
from harness.core.errors import UserError, first_line
from harness.deploy.model import CHUNK, Model

if TYPE_CHECKING:
    import onnxruntime

FILE = "model.onnx"
ALLOWED = 1e-3
"""Largest allowed difference of a logit; float32 sums in another order differ by much less."""


def require_onnx() -> None:
    """Raise UserError if the libraries of the extra `onnx` are not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--onnx and --int8 need the extra: pip install -e '.[onnx]' ({first_line(error)})"
        ) from None


def write_onnx(model: Model, folder: Path, rows: torch.Tensor) -> float:
    """Write model.onnx, which takes prepared examples in batches of any size, under the name "images",
    "sounds" or "texts".

    Args:
        model: the model.
        folder: folder of the file.
        rows: n rows of examples on which both networks must agree, n at least 2.

    Returns:
        Largest absolute difference of a logit.

    Raises:
        UserError: if the network cannot be exported, or its outputs differ.
    """
    path = folder / FILE
    examples = model.prepare(rows)
    try:
        with quiet():
            torch.onnx.export(
                as_graph(model.network, examples),
                (examples,),
                str(path),
                input_names=[f"{model.medium.noun}s"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # torch.export and onnxscript raise many kinds
        path.unlink(missing_ok=True)
        raise UserError(f"the network cannot be exported as ONNX: {first_line(error)}") from error
    return _compare(model, path, examples)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings about internals of torch and onnxruntime, whose own go to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def session(path: Path) -> onnxruntime.InferenceSession:
    """The network of an ONNX file, on the CPU with as many threads as torch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def logits_of(network: onnxruntime.InferenceSession, examples: torch.Tensor) -> torch.Tensor:
    """(n, classes) for n prepared examples."""
    name = network.get_inputs()[0].name
    parts = [network.run(["logits"], {name: some.numpy()})[0] for some in examples.split(CHUNK)]
    return torch.cat([torch.from_numpy(part) for part in parts])


def _compare(model: Model, path: Path, examples: torch.Tensor) -> float:
    with torch.inference_mode():
        expected = model.network(examples)
    worst = float((logits_of(session(path), examples) - expected).abs().max())
    if not worst <= ALLOWED:
        path.unlink()
        raise UserError(
            f"the ONNX model is not the same: a logit differs by {worst:.2g}, more than {ALLOWED:g}; no file "
            "was written"
        )
    return worst
