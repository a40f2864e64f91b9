"""One trial: train and evaluate one configuration. Knows nothing of searches."""

from typing import TYPE_CHECKING

from cst_search.lazy import lazy_names

if TYPE_CHECKING:
    from cst_search.trial.device import choose_device as choose_device
    from cst_search.trial.result import TrialResult as TrialResult
    from cst_search.trial.run import run_trial as run_trial
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "run_trial": "run",
            "TrialResult": "result",
            "choose_device": "device",
        },
    )
