"""Compare pretrained backbones and fine-tuning strategies on a small image data set, with their cost.

    from harness import Study, TrialSpec, dry_run, run_study, strategies

Every name is loaded when it is first used, so that `import harness` is quick.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

# With `python -m`, Python looks in the current folder first, where a random.py would hide the standard one.
if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    sys.path.append(sys.path.pop(0))

from harness.core.caller import set_variables, undisturbed

if sys.argv[:1] == ["-m"]:  # a command, whose process is ours
    set_variables()  # before anything imports MLflow, which looks at once

if TYPE_CHECKING:
    from harness.average import average_networks
    from harness.bundle import merge_bundles, pack_study
    from harness.cache import CacheContents, empty_cache, list_cache
    from harness.core import strategies
    from harness.core.errors import UserError
    from harness.core.spec import SHIFTS, TrialSpec
    from harness.core.study import Arms, Study
    from harness.core.study_file import load_study as load_study_file
    from harness.deploy.averages import RepeatAverages
    from harness.deploy.export import Exported
    from harness.deploy.prediction import Prediction
    from harness.export import export_model
    from harness.lr_find import find_lr
    from harness.new import look_at, propose_study
    from harness.predict import predict_images
    from harness.pretrain import Pretrained, pretrain_sources
    from harness.rank import rank_sources
    from harness.replay import replay_run
    from harness.search.bundles import Packed
    from harness.search.merge import Merged
    from harness.search.options import StudyOptions
    from harness.similarity.__main__ import PairMeasured, measure_similarity
    from harness.similarity.sources.ranking import Ranking
    from harness.similarity.sources.spec import SourceSpec
    from harness.status import study_status
    from harness.study import dry_run, run_study
    from harness.sync import sync_study
    from harness.tracking.replay import Replayed
    from harness.tracking.results import StudyResult, load_result
    from harness.training.lr_range import LrRange

__all__ = [
    "SHIFTS",
    "Arms",
    "CacheContents",
    "Exported",
    "LrRange",
    "Merged",
    "Packed",
    "PairMeasured",
    "Prediction",
    "Pretrained",
    "Ranking",
    "RepeatAverages",
    "Replayed",
    "SourceSpec",
    "Study",
    "StudyOptions",
    "StudyResult",
    "TrialSpec",
    "UserError",
    "average_networks",
    "dry_run",
    "empty_cache",
    "export_model",
    "find_lr",
    "list_cache",
    "load_result",
    "load_study_file",
    "look_at",
    "measure_similarity",
    "merge_bundles",
    "pack_study",
    "predict_images",
    "pretrain_sources",
    "propose_study",
    "rank_sources",
    "replay_run",
    "run_study",
    "strategies",
    "study_status",
    "sync_study",
]

_HOME = {
    "average": ("average_networks",),
    "bundle": ("merge_bundles", "pack_study"),
    "cache": ("CacheContents", "empty_cache", "list_cache"),
    "core.errors": ("UserError",),
    "core.spec": ("SHIFTS", "TrialSpec"),
    "core.study": ("Arms", "Study"),
    "deploy.averages": ("RepeatAverages",),
    "deploy.export": ("Exported",),
    "deploy.prediction": ("Prediction",),
    "export": ("export_model",),
    "lr_find": ("find_lr",),
    "new": ("look_at", "propose_study"),
    "predict": ("predict_images",),
    "pretrain": ("Pretrained", "pretrain_sources"),
    "rank": ("rank_sources",),
    "replay": ("replay_run",),
    "search.bundles": ("Packed",),
    "search.merge": ("Merged",),
    "search.options": ("StudyOptions",),
    "similarity.__main__": ("PairMeasured", "measure_similarity"),
    "similarity.sources.ranking": ("Ranking",),
    "similarity.sources.spec": ("SourceSpec",),
    "status": ("study_status",),
    "study": ("dry_run", "run_study"),
    "sync": ("sync_study",),
    "tracking.replay": ("Replayed",),
    "tracking.results": ("StudyResult", "load_result"),
    "training.lr_range": ("LrRange",),
}
"""Module -> what is offered of it here. No name is a command's: `harness.export` stays the module."""


@undisturbed()
def __getattr__(name: str) -> Any:
    if name == "strategies":
        return importlib.import_module("harness.core.strategies")
    if name == "load_study_file":
        return importlib.import_module("harness.core.study_file").load_study
    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f"harness.{module}"), name)
    raise AttributeError(f"module 'harness' has no attribute {name!r}")
