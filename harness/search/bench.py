"""Where, and with what, are trials run? Everything that a runner needs but the study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import optuna

from harness.measure import Device
from harness.record import Recorder
from harness.rows import Cache
from harness.search.leases import Owner, Watch
from harness.search.preemption import Checkpoints


@dataclass(frozen=True)
class Limits:
    """What a trial may take.

    Attributes:
        memory: bytes; a trial whose forecast is higher ends as oom without being run.
        seconds: a trial that takes longer ends as timeout.
    """

    memory: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Bench:
    """Where and with what trials are run: everything but the study.

    Attributes:
        storage: Optuna's memory.
        recorder: MLflow's.
        device: where to compute.
        tags: environment, put on every run.
        cache: where decoded images and outputs of frozen groups are kept.
        limits: what a trial may take.
        watch: who this process is, and when others' leases are over.
        checkpoints: what is kept of trials that have not ended.
    """

    storage: optuna.storages.BaseStorage
    recorder: Recorder
    device: Device
    tags: Mapping[str, str]
    cache: Cache = field(default_factory=Cache)
    limits: Limits = field(default_factory=Limits)
    watch: Watch = field(default_factory=lambda: Watch(Owner.here()))
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
