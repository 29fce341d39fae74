"""Run a recorded trial again from its MLflow run alone, and compare its values.

python -m harness.replay RUN_ID
python -m harness.replay RUN_ID --space FILE    # for a strategy, backbone or target that FILE defines
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from harness.core.caller import undisturbed
from harness.core.command_line import SIZE, File, command
from harness.core.study_file import names_of, study_path
from harness.core.units import Size

if TYPE_CHECKING:
    from harness.tracking.replay import Replayed


@undisturbed()
def replay_run(
    run_id: str,
    *,
    space: File | None = None,
    tracking_uri: str | None = None,
    device: str | None = None,
    cache_dir: File | None = None,
    cache_budget: Annotated[Size | str, SIZE] = "10GiB",
    target: str | None = None,
) -> Replayed:
    """Run a recorded trial again, and print to how many digits the results agree. Nothing is recorded.

    The exit code is 0 if they agree: bitwise if machine, versions and settings are the recorded ones, else
    within a tolerance. It is 1 if they do not agree, or if examples or weights have changed, and 2 on bad
    input. Differences of inputs, versions and settings from the recorded ones are listed.

    Args:
        run_id: MLflow run id of a complete trial, as shown in the MLflow UI.
        space: study file (its code is run), needed where it defines the strategy, backbone or target.
        tracking_uri: MLflow tracking URI; the default is sqlite:///mlruns/mlflow.db.
        device: auto, cpu, cuda or mps; the default is the recorded one if it is available.
        cache_dir: read outputs of frozen layers from this folder; by default they are computed again.
        cache_budget: size limit of that folder; 0 caches nothing.
        target: where the examples are now, e.g. folder:PATH, if they have moved.

    Raises:
        UserError: on bad input.
    """
    from harness.core.stores import default_tracking_uri
    from harness.tracking import replay
    from harness.tracking.runs import read_run
    from harness.training.provenance import clear_caches

    clear_caches()
    budget = Size(cache_budget)
    recorded = read_run(tracking_uri or default_tracking_uri(), run_id)
    file = None if space is None else study_path(str(space))
    kept = None if cache_dir is None else Path(cache_dir)
    with names_of(file, recorded.tags):
        return replay.replay_run(recorded, device, file, kept, budget, target)


main = command("harness.replay", replay_run, lambda done: 0 if done.agreed else 1)

if __name__ == "__main__":
    sys.exit(main())
