"""Which pretrained backbone, and which fine-tuning strategy, for a small image data set, at what cost?

    from harness import Study, TrialSpec, dry_run, run_study, transfer

Every name is loaded when it is first used, so that `import harness` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness import transfer
    from harness.api import StudyResult, dry_run, load_result, run_study
    from harness.export import Exported, export_model
    from harness.new import propose_study
    from harness.predict import Prediction, predict_images
    from harness.spec import Arms, Study, TrialSpec, UserError
    from harness.study_file import load_study as load_study_file

__all__ = [
    "Arms",
    "Exported",
    "Prediction",
    "Study",
    "StudyResult",
    "TrialSpec",
    "UserError",
    "dry_run",
    "export_model",
    "load_result",
    "load_study_file",
    "predict_images",
    "propose_study",
    "run_study",
    "transfer",
]

_HOME = {
    "spec": ("Arms", "Study", "TrialSpec", "UserError"),
    "api": ("StudyResult", "dry_run", "load_result", "run_study"),
    "export": ("Exported", "export_model"),
    "new": ("propose_study",),
    "predict": ("Prediction", "predict_images"),
}
"""Module -> what is offered of it here. No name is a command's: `harness.export` stays the module."""


def __getattr__(name: str) -> Any:
    if name == "transfer":
        return importlib.import_module("harness.transfer")
    if name == "load_study_file":
        return importlib.import_module("harness.study_file").load_study
    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f"harness.{module}"), name)
    raise AttributeError(f"module 'harness' has no attribute {name!r}")
