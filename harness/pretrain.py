"""Train source models of your own and record them, so that trials can start from them.

    python -m harness.pretrain --space studies/sources.py

Running the same command again trains only what is not recorded yet.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.spec import UserError, run_command
from harness.study_file import run_file, study_path

ROOT = Path("mlruns")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.pretrain",
        description="Train the `sources` of a file and record them; a trial names one as its source.",
        epilog="Running the same command again trains only what is not recorded yet.",
    )
    parser.add_argument(
        "--space",
        required=True,
        type=study_path,
        help="a Python file with `sources` (its code is run)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument(
        "--tracking-uri", help="MLflow tracking URI (default: sqlite:///mlruns/mlflow.db)"
    )
    parser.add_argument(
        "--cache-dir", type=Path, help="where decoded images are kept (default: user's cache)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be trained; stop")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = parse(argv)
    return run_command(lambda: run(arguments), "run the same command again to go on")


def run(arguments: argparse.Namespace) -> int:
    """Everything after the command line has been read.

    Raises:
        UserError: on bad input.
    """
    from harness.sources.spec import sources_of

    sources = sources_of(run_file(arguments.space), arguments.space)

    import torch

    from harness.backbone import check_backbone
    from harness.backbone.recorded import PREFIX
    from harness.measure import resolve_device
    from harness.record import PlainInfo, Recorder
    from harness.rows import Cache, default_folder
    from harness.search.lock import sole_runner
    from harness.sources.recording import EXPERIMENT, NOTE, check_sources, metrics_of, pretrain_all
    from harness.stores import default_tracking_uri
    from harness.train import Diverged

    device = resolve_device(arguments.device)
    for spec in sources:
        check_backbone(spec.backbone)
    check_sources(sources)
    if arguments.dry_run:
        for spec in sources:
            print(f"{PREFIX}{spec.name} x {spec.models}: {spec.objective} on {spec.data}")
        return 0
    cache = Cache(arguments.cache_dir or default_folder())
    tags = {"device": device.name, "threads": str(torch.get_num_threads())}
    with sole_runner(ROOT, EXPERIMENT):
        uri = arguments.tracking_uri or default_tracking_uri(ROOT)
        recorder = Recorder(uri, PlainInfo(EXPERIMENT, NOTE))
        total, resumed = sum(spec.models for spec in sources), 0
        try:
            for count, done in enumerate(
                pretrain_all(sources, recorder, device, tags, cache), start=1
            ):
                resumed += done.resumed
                if not done.resumed:
                    shown = ", ".join(f"{k} {v:.3g}" for k, v in metrics_of(done.model).items())
                    print(f"[{count:>3}/{total}] {PREFIX}{done.model.name}: {shown}", flush=True)
        except Diverged as error:
            raise UserError(f"training diverged ({error}); lower the source's lr") from error
    print(f"{total - resumed} models trained, {resumed} of {total} were recorded before")
    return 0


if __name__ == "__main__":
    sys.exit(main())
