"""Compare pretrained backbones and fine-tuning strategies on a small data set, and their cost.

    from harness import Study, TrialSpec, dry_run, run_study, strategies

Every name in __init__.pyi is loaded when it is first used, so that `import harness` is quick.
"""

from __future__ import annotations

import sys

# With `python -m`, Python looks in the current folder first, where a random.py would hide the standard one.
if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    sys.path.append(sys.path.pop(0))

from harness.core.caller import set_variables
from harness.core.lazy import lazy_names

if sys.argv[:1] == ["-m"]:  # this process runs a command
    set_variables()  # before MLflow is imported, which reads them at once

__getattr__, __dir__ = lazy_names(__name__)
