"""Train source models of your own and record them, so that trials can start from them.

    python -m harness.pretrain --space studies/sources.py

Running the same command again trains only what is not recorded yet.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.core.caller import undisturbed
from harness.core.command_line import File, command, escaped_output
from harness.core.errors import UserError, counted
from harness.core.study_file import run_file, study_path


@dataclass(frozen=True)
class Pretrained:
    """A recorded source model.

    Attributes:
        source: as a TrialSpec names it, "recorded:NAME".
        resumed: it was recorded before, not trained now.
        metrics: measured when it was trained.
    """

    source: str
    resumed: bool
    metrics: Mapping[str, float] = field(default_factory=dict)


@undisturbed()
@escaped_output()
def pretrain_sources(
    space: File,
    *,
    device: str = "auto",
    tracking_uri: str | None = None,
    cache_dir: File | None = None,
    dry_run: bool = False,
) -> tuple[Pretrained, ...]:
    """Train the `sources` of a file and record them, so that trials can start from them.

    Running the same command again trains only what is not recorded yet.

    Args:
        space: a Python file with `sources` (its code is run), or the name of a shipped study.
        device: auto, cpu, cuda or mps.
        tracking_uri: MLflow tracking URI; the default is sqlite:///mlruns/mlflow.db.
        cache_dir: folder that caches decoded examples; the default is in the user's cache.
        dry_run: print what would be trained; then stop.

    Raises:
        UserError: on bad input, or if a loss is not finite.
    """
    from harness.similarity.sources.spec import sources_of

    file = study_path(str(space))
    sources = sources_of(run_file(file), file)

    import torch

    from harness.backbones import check_backbone
    from harness.backbones.recorded import PREFIX
    from harness.core.stores import ROOT, default_tracking_uri
    from harness.data.cache_folder import default_folder
    from harness.data.cached import Cache
    from harness.search.lock import sole_runner
    from harness.similarity.sources.recording import (
        EXPERIMENT,
        NOTE,
        check_sources,
        metrics_of,
        pretrain_all,
    )
    from harness.tracking.experiment import Experiment
    from harness.training.device import resolve_device
    from harness.training.loop import Diverged

    where = resolve_device(device)
    for spec in sources:
        check_backbone(spec.backbone)
    check_sources(sources)
    if dry_run:
        for spec in sources:
            print(f"{PREFIX}{spec.name} x {spec.models}: {spec.objective} on {spec.data}")
        return ()
    cache, done = Cache(Path(cache_dir or default_folder())), list[Pretrained]()
    tags = {"device": where.name, "threads": str(torch.get_num_threads())}
    total = sum(spec.models for spec in sources)
    with sole_runner(ROOT, EXPERIMENT):
        recorder = Experiment(
            tracking_uri or default_tracking_uri(),
            EXPERIMENT,
            {"mlflow.experimentKind": "custom_model_development", "mlflow.note.content": NOTE},
        )
        try:
            for model, resumed in pretrain_all(sources, recorder, where, tags, cache):
                name, metrics = f"{PREFIX}{model.name}", metrics_of(model)
                done.append(Pretrained(name, resumed, metrics))
                if not resumed:
                    shown = ", ".join(f"{k} {v:.3g}" for k, v in metrics.items())
                    print(f"[{len(done):>3}/{total}] {name}: {shown}", flush=True)
        except Diverged as error:
            raise UserError(f"training diverged ({error}); lower the source's lr") from error
    before = sum(one.resumed for one in done)
    print(f"{counted(total - before, 'model')} trained, {before} of {total} recorded before")
    return tuple(done)


main = command(
    "harness.pretrain", pretrain_sources, if_stopped="run the same command again to resume"
)

if __name__ == "__main__":
    sys.exit(main())
