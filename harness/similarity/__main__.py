"""Measure the similarity of a study's sources and targets, and record it beside the trials.

    python -m harness.similarity --space studies/source_similarity.py

Only training examples of the target are looked at. A pair that was measured before is not measured again.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.caller import undisturbed
from harness.core.command_line import File, command, escaped_output
from harness.core.errors import UserError, counted
from harness.core.html import as_table
from harness.core.study_file import load_study, study_path

if TYPE_CHECKING:
    from harness.similarity import Measurement


@dataclass(frozen=True)
class PairMeasured:
    """How alike a source and a target are; a table in a notebook.

    Attributes:
        name: of the pair.
        measurements: one per measure, including those without a value.
    """

    name: str
    measurements: tuple[Measurement, ...]

    def _repr_html_(self) -> str:
        rows = [(m.name, f"{m.value:.3g}", m.better, m.reason) for m in self.measurements]
        return as_table(self.name, ("measure", "value", "better", "why not"), rows)


@undisturbed()
@escaped_output()
def measure_similarity(
    space: File,
    *,
    device: str = "auto",
    tracking_uri: str | None = None,
    cache_dir: File | None = None,
    resamples: int | None = None,
) -> tuple[PairMeasured, ...]:
    """Measure the similarity of every source and target that a study compares; print and record it.

    Running the same command again measures only what is not recorded yet.

    Args:
        space: study file (its code is run), or the name of a shipped study.
        device: auto, cpu, cuda or mps.
        tracking_uri: MLflow tracking URI; the default is sqlite:///mlruns/mlflow.db.
        cache_dir: folder that caches outputs of networks; the default is in the user's cache.
        resamples: number of resamples for each interval; 0 computes no intervals, several times faster. The
            default depends on the measure.

    Returns:
        The pairs that were measured now; those recorded before are in `analysis.load_study(...).measures`.

    Raises:
        UserError: on bad input.
    """
    if resamples is not None and resamples < 0:
        raise UserError(f"--resamples must be at least 0, got {resamples}")
    study = load_study(study_path(str(space)))

    from harness.core.stores import default_tracking_uri
    from harness.data.cache_folder import default_folder
    from harness.data.cached import Cache
    from harness.search.space import first_draw
    from harness.similarity.sources.measuring import Measuring, as_run, pairs_of, shared_images
    from harness.tracking.experiment import Experiment
    from harness.training.device import resolve_device

    where = resolve_device(device)
    pairs = pairs_of((cell, first_draw(study, cell)) for cell in study.cells())
    for pair in pairs:
        if shared := shared_images(pair):
            print(
                f"warning: {pair.name}: the source learned from {shared} examples of the target",
                file=sys.stderr,
            )
    recorder = Experiment(tracking_uri or default_tracking_uri(), study.name, {})
    known = {run.get("pair_sha256") for run in recorder.kept("similarity")}
    todo = [pair for pair in pairs if pair.identity() not in known]
    done: list[PairMeasured] = []
    if todo:
        measuring = Measuring(pairs, where, Cache(Path(cache_dir or default_folder())))
    for count, pair in enumerate(todo, start=1):
        found = list(measuring.measure(pair, resamples))
        tags, metrics = as_run(pair, found)
        tags["study"] = study.name
        recorder.keep(f"similarity {pair.name}", pair.spec.flat(), tags, metrics)
        shown = ", ".join(f"{m.name} {m.value:.3g}" for m in found if not m.refused)
        print(f"[{count:>3}/{len(todo)}] {pair.name}: {shown}", flush=True)
        done.append(PairMeasured(pair.name, tuple(found)))
    print(f"{counted(len(todo), 'pair')} measured, {len(pairs) - len(todo)} recorded before")
    return tuple(done)


main = command(
    "harness.similarity", measure_similarity, if_stopped="run the same command again to resume"
)

if __name__ == "__main__":
    sys.exit(main())
