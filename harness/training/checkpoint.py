"""Checkpoints within a trial: a stopped trial resumes after its last complete epoch, bit for bit.

    for epoch in fit:
        fit.checkpoint().save(path)                                 # None for scikit-learn's classifiers
    fit = start(spec, device, cache, Checkpoint.load(path))         # later, in another process

A file that is damaged, or of another trial, raises BadCheckpoint; the caller then starts the trial from the
beginning and says so. No code in the file is ever run.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch

from harness.core.errors import first_line
from harness.core.results import EpochResult
from harness.core.spec import TrialSpec

FORMAT = "transfer-harness checkpoint 2"
"""A file begins with this; its first line ends with the SHA-256 of everything after that line."""
_HEAD = len(f"{FORMAT} {'0' * 64}\n")


class BadCheckpoint(Exception):
    """The trial cannot continue from this checkpoint and has to start over; the message says why."""


@dataclass(frozen=True)
class Checkpoint:
    """One trial after some of its epochs.

    Attributes:
        trial: `trial_key` of its spec.
        provenance: what determines its results besides the spec, by name: versions, hashes of images and
            weights.
        epochs: results of the completed epochs, at least one.
        state: the state of training, by the part that it belongs to: tensors on the CPU, numbers and strings,
            in dicts, lists and tuples.
    """

    trial: str
    provenance: Mapping[str, str]
    epochs: tuple[EpochResult, ...]
    state: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Write the file completely or not at all: first beside its place, then moved there.

        Raises:
            OSError: if it cannot be written; an earlier file there is unchanged.
        """
        content = {
            "trial": self.trial,
            "provenance": dict(self.provenance),
            "epochs": [astuple(e) for e in self.epochs],
            "state": self.state,
        }
        written = io.BytesIO()
        torch.save(content, written)
        body = written.getbuffer()
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with beside.open("wb") as file:
                file.write(_head(body))
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # so that the new name survives a power cut too
        finally:
            os.close(folder)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError: if there is none.
            BadCheckpoint: if it cannot be read, or differs from what was written.
        """
        try:
            raw = memoryview(path.read_bytes())
        except FileNotFoundError:
            raise
        except OSError as error:
            raise BadCheckpoint(f"checkpoint {path} cannot be read: {first_line(error)}") from error
        body = raw[_HEAD:]
        if raw[:_HEAD] != _head(body):
            raise BadCheckpoint(
                f"checkpoint {path} is damaged, or of another version of the harness"
            )
        content = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
        epochs = tuple(EpochResult(*values) for values in content["epochs"])
        return cls(content["trial"], content["provenance"], epochs, content["state"])

    def check(self, spec: TrialSpec, provenance: Mapping[str, str]) -> None:
        """Raises BadCheckpoint if it is of another trial, or its provenance has changed."""
        if self.trial != trial_key(spec):
            raise BadCheckpoint("the checkpoint is of another trial")
        both = (
            (name, *(d.get(name, "absent")[:12] for d in (self.provenance, provenance)))
            for name in {**self.provenance, **provenance}
            if self.provenance.get(name) != provenance.get(name)
        )
        changed = [f"{name} was {then}, is {now}" for name, then, now in both]
        if changed:
            raise BadCheckpoint(f"the checkpoint was made before a change: {'; '.join(changed)}")


def trial_key(spec: TrialSpec) -> str:
    """SHA-256 of the complete spec."""
    return hashlib.sha256(json.dumps(spec.flat(), sort_keys=True).encode()).hexdigest()


def copied(state: Any) -> Any:
    """The same nested dicts, lists and tuples, with copies of the tensors on the CPU; strides are kept."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(copied(value) for value in state)
    return state


def _head(body: memoryview) -> bytes:
    return f"{FORMAT} {hashlib.sha256(body).hexdigest()}\n".encode()
