"""Predicted training memory: arithmetic on shapes, standard library only."""

from typing import TYPE_CHECKING

from cst_search.lazy import lazy_names

if TYPE_CHECKING:
    from cst_search.memory.estimate import Estimate as Estimate
    from cst_search.memory.estimate import InputShape as InputShape
    from cst_search.memory.estimate import worst_input as worst_input
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "Estimate": "estimate",
            "InputShape": "estimate",
            "worst_input": "estimate",
        },
    )
