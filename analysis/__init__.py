"""Analysis of recorded trials: `load_study` reads them, the commands `report` and `recommend` answer.

    from analysis import load_study
    load_study("freeze_depth").trials

Every name in __init__.pyi is loaded when it is first used, so that `import analysis` is quick.
"""

from harness.core.lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__)
