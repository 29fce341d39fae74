"""Checkpoints within a trial: a stopped trial resumes after its last whole epoch, bit for bit.

    for epoch in fit:
        fit.checkpoint().save(path)                                 # None for scikit-learn's classifiers
    fit = start(spec, device, cache, Checkpoint.load(path))         # later, in another process

A file that is damaged, or of another trial, is refused with BadCheckpoint; the caller then starts the
trial from the beginning and says so. Nothing in the file is ever run.
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
"""First words of a file; the SHA-256 of all that follows the first line ends that line."""
_HEAD = len(f"{FORMAT} {'0' * 64}\n")


class BadCheckpoint(Exception):
    """This checkpoint cannot be gone on from: start the trial over, and say why."""


@dataclass(frozen=True)
class Checkpoint:
    """One trial after some of its epochs.

    Attributes:
        trial: `trial_key` of its spec.
        provenance: what else decides its numbers, by name: versions, hashes of images and weights.
        epochs: results of the epochs that have ended, at least one.
        state: what training goes on with, by the part that it belongs to: tensors on the CPU, numbers and
            strings, in dicts, lists and tuples.
    """

    trial: str
    provenance: Mapping[str, str]
    epochs: tuple[EpochResult, ...]
    state: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Write the file whole or not at all: kept beside its place until it is on the disk.

        Raises:
            OSError: if it cannot be written; the file that was there before is as it was.
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
            os.fsync(folder)  # the new name, too, outlives a power cut
        finally:
            os.close(folder)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError: if there is none.
            BadCheckpoint: if it cannot be read or is not byte for byte what was written.
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
        """Raises BadCheckpoint unless this is that trial's, made from the same as it would be now."""
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
    """The same nest of dicts, lists and tuples with copies of its tensors on the CPU, in the same order in
    memory (strides)."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(copied(value) for value in state)
    return state


def _head(body: memoryview) -> bytes:
    return f"{FORMAT} {hashlib.sha256(body).hexdigest()}\n".encode()
