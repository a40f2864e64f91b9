"""`head`: train only the neck and the head; the backbone stays frozen."""

from cst_search.memory.plan import MemoryPlan
from cst_search.petl.base import Method, NoOptions, nothing_to_merge

METHOD = Method(
    name="head",
    options=NoOptions,
    lr=3e-3,
    side=True,
    source="Vasconcelos et al., Proper Reuse of Image Classification Features Improves Object Detection, CVPR 2022",
    apply=lambda backbone, options: None,
    petl_params=lambda shape, options: 0,
    footprint=lambda shape, options: MemoryPlan(),
    merge=nothing_to_merge,
)
