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
    from harness.bundle import Merged, Packed, merge_bundles, pack_study
    from harness.cache import CacheContents, empty_cache, list_cache
    from harness.core import strategies
    from harness.core.errors import UserError
    from harness.core.spec import SHIFTS, Arms, Study, TrialSpec
    from harness.core.study_file import load_study as load_study_file
    from harness.export import Exported, export_model
    from harness.lr_find import LrRange, find_lr
    from harness.new import look_at, propose_study
    from harness.predict import Prediction, predict_images
    from harness.pretrain import Pretrained, pretrain_sources
    from harness.rank import Ranking, rank_sources
    from harness.replay import Replayed, replay_run
    from harness.search.options import StudyOptions
    from harness.similarity.__main__ import PairMeasured, measure_similarity
    from harness.similarity.sources.spec import SourceSpec
    from harness.status import study_status
    from harness.study import dry_run, run_study
    from harness.sync import sync_study
    from harness.tracking.results import StudyResult, load_result

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
    "Replayed",
    "SourceSpec",
    "Study",
    "StudyOptions",
    "StudyResult",
    "TrialSpec",
    "UserError",
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
    "bundle": ("Merged", "Packed", "merge_bundles", "pack_study"),
    "cache": ("CacheContents", "empty_cache", "list_cache"),
    "export": ("Exported", "export_model"),
    "lr_find": ("LrRange", "find_lr"),
    "new": ("look_at", "propose_study"),
    "predict": ("Prediction", "predict_images"),
    "pretrain": ("Pretrained", "pretrain_sources"),
    "rank": ("Ranking", "rank_sources"),
    "replay": ("Replayed", "replay_run"),
    "similarity.__main__": ("PairMeasured", "measure_similarity"),
    "similarity.sources.spec": ("SourceSpec",),
    "core.errors": ("UserError",),
    "core.spec": ("SHIFTS", "Arms", "Study", "TrialSpec"),
    "search.options": ("StudyOptions",),
    "status": ("study_status",),
    "study": ("dry_run", "run_study"),
    "sync": ("sync_study",),
    "tracking.results": ("StudyResult", "load_result"),
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
