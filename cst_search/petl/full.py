"""`full`: train every convolution of the backbone, i.e. ordinary fine-tuning without PETL."""

from cst_search.memory.plan import MemoryPlan
from cst_search.petl.base import HasBody, Method, NoOptions, nothing_to_merge


def _apply(backbone: HasBody, options: NoOptions) -> None:
    backbone.body.requires_grad_(True)
    backbone.body.grad_from = 0


METHOD = Method(
    name="full",
    options=NoOptions,
    lr=1e-3,  # ahead of 3e-4 on each of seven data sets, see docs/methods.md
    side=False,
    source="ordinary fine-tuning; torchvision's detectors with trainable_backbone_layers=5",
    apply=_apply,
    petl_params=lambda shape, options: shape.n_params,
    footprint=lambda shape, options: MemoryPlan(grad_from=0, trained_from=1),
    merge=nothing_to_merge,
)
