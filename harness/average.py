"""Average the weights of a cell's networks, and record how good the averages are.

    python -m harness.average --study freeze_depth

Averages cost as much to use as a single network. There are two kinds, made for each repeat: a soup of the
best configurations, and a mixture of the fine-tuned network with a linear probe (WiSE-FT). The report has a
table of them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from harness.core.caller import undisturbed
from harness.core.command_line import File, command, escaped_output
from harness.core.errors import UserError, counted
from harness.core.study_file import names_of

if TYPE_CHECKING:
    from harness.deploy.averages import RepeatAverages


@undisturbed()
@escaped_output()
def average_networks(
    study: str,
    *,
    cell: str | None = None,
    space: File | None = None,
    members: int = 4,
    device: str = "auto",
    tracking_uri: str | None = None,
    target: str | None = None,
) -> tuple[RepeatAverages, ...]:
    """Average the weights of networks of a study's best cell, for each of its repeats; print and record how
    good the averages are.

    The repeat's configuration and the next best ones are trained with its seed. The soup is the mean of
    those whose addition does not lower the validation score. WiSE-FT is a weighted mean of the repeat's
    network and a linear probe with its seed; the weight is chosen on validation. Both are scored once on
    test. Running the same command again computes only what is not recorded yet.

    Args:
        study: name of a study that was run.
        cell: label of a cell, e.g. 'full'; the default is that with the best mean validation score.
        space: study file (its code is run), needed where it defines the strategy, backbone or target.
        members: largest number of networks in a soup; 1 makes no soup.
        device: auto, cpu, cuda or mps.
        tracking_uri: MLflow tracking URI; the default is sqlite:///mlruns/mlflow.db.
        target: where the examples are now, e.g. folder:PATH, if they have moved.

    Returns:
        The averages made by this call; `analysis.load_study(...).averages` has all of them.

    Raises:
        UserError: if there is no such study or cell, or no weights of the cell can be averaged.
    """
    if members < 1:
        raise UserError(f"--members must be at least 1, got {members}")

    from harness.core.stores import default_tracking_uri
    from harness.data.cached import default_cache
    from harness.deploy.averages import PHASE, plans
    from harness.deploy.choice import choose
    from harness.tracking.experiment import Experiment
    from harness.tracking.results import load_result
    from harness.tracking.runs import runs_of
    from harness.training.device import resolve_device
    from harness.training.provenance import clear_caches

    clear_caches()
    where, cache = resolve_device(device), default_cache()
    chosen, why = choose(load_result(study, tracking_uri).cells, cell)
    tuned = runs_of(study, "tune", tracking_uri)
    done = []
    with names_of(space, chosen.repeats[0].tags):
        planned, notes = plans(chosen, tuned, members, target)
        recorder = Experiment(tracking_uri or default_tracking_uri(), study, {})
        known = {run["identity"] for run in recorder.kept(PHASE)}
        todo = [plan for plan in planned if plan.identity not in known]
        print(f"cell “{chosen.cell}”: {why}; {chosen.metric.label} on validation and on test:")
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        for count, plan in enumerate(todo, start=1):
            found = plan.carry_out(where, cache)
            recorder.keep(
                f"average {plan.name}", plan.specs[0].flat(), plan.tags(), found.recorded()
            )
            print(f"[{count:>3}/{len(todo)}] {found}", flush=True)
            done.append(found)
    print(f"{counted(len(todo), 'repeat')} done, {len(planned) - len(todo)} recorded before")
    return tuple(done)


main = command(
    "harness.average", average_networks, if_stopped="run the same command again to resume"
)

if __name__ == "__main__":
    sys.exit(main())
