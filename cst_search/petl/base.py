"""What every method has in common: one small contract.

A method gets a backbone whose body is wholly frozen and whose every stage runs without autograd. It may open or replace
things in the body (and then says from which stage on autograd is needed), or hang a side network beside it, or both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

from cst_search.config.recipe import wrong_kinds
from cst_search.errors import ConfigError
from cst_search.memory.plan import MemoryPlan
from cst_search.memory.resnet_shapes import BackboneShape

if TYPE_CHECKING:
    from torch import Tensor

    from cst_search.backbone.resnet import Body
    from cst_search.petl.modules.side_network import SideNetwork


class HasBody(Protocol):
    """The part of `detector.pyramid.Backbone` that methods work on."""

    body: Body
    side: SideNetwork | None
    used_stages: tuple[int, ...]


@dataclass(frozen=True)
class Method:
    """One PETL method: the whole contract between a method and the rest, for those of other packages too.

    From ``options`` come the names and defaults in recipes, ``--set NAME.option=value`` and search spaces;
    ``footprint`` and ``petl_params`` say what a configuration costs before it runs, without which it could not be
    searched within a budget: there is no guess in their place.

    Attributes:
        name: as in recipes and search spaces.
        options: frozen dataclass; its defaults are the method's defaults, its ``__post_init__`` checks ranges.
        lr: prior of the peak learning rate with AdamW.
        side: nothing re-enters the body, so no gradient crosses it (a tested invariant).
        source: where the method and its defaults come from.
        apply: changes the backbone in place.
        petl_params: the closed formula of the parameters it adds or opens.
        footprint: what it changes in a backbone as shapes, for the prediction of memory.
        shapeless: options that change no tensor's shape, so that predictions of memory are shared across their values.
        prepare: changes the start with a look at training images, before the optimiser is made. It gets the training
            loss of one image after the other, through the detector as built; it opens what it wants gradients of, and
            closes that again. Saved weights are loaded without it. `MemoryPlan.start` has its memory.
        merge: turns a body that the method changed back into plain torchvision tensors with the same output, in place;
            None where that cannot be exact. It may raise ConfigError for some options.
    """

    name: str
    options: type[Any]
    lr: float
    side: bool
    source: str
    apply: Callable[[HasBody, Any], None]
    petl_params: Callable[[BackboneShape, Any], int]
    footprint: Callable[[BackboneShape, Any], MemoryPlan]
    shapeless: tuple[str, ...] = ()
    prepare: Callable[[HasBody, Any, Iterator[Tensor]], None] | None = None
    merge: Callable[[HasBody, Any], None] | None = None

    def make_options(self, values: Mapping[str, Any]) -> Any:
        """Options with their defaults filled in. Raises ConfigError: unknown name or value out of range."""
        known = [f.name for f in fields(self.options)]
        unknown = [name for name in values if name not in known]
        if unknown:
            raise ConfigError(
                f"method {self.name!r} has no option {', '.join(map(repr, unknown))}; "
                f"it has {', '.join(known) or 'none'}"
            )
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        if faults := wrong_kinds(self.options, given):
            raise ConfigError(f"{self.name}: " + "; ".join(faults))
        return self.options(**given)


@dataclass(frozen=True)
class NoOptions:
    """For methods without a choice."""


def check(method: str, rules: Mapping[str, tuple[bool, str, Any]]) -> None:
    """Refuse options: ``rules`` maps an option to (it holds, what it must be, its value). Raises ConfigError."""
    faults = [f"{name} must be {must}; got {value!r}" for name, (holds, must, value) in rules.items() if not holds]
    if faults:
        raise ConfigError(f"{method}: " + "; ".join(faults))


def from_stage(value: int, lowest: int) -> tuple[bool, str, int]:
    """The rule of ``first_stage``, for `check`."""
    return value in range(lowest, 6), f"a stage from {lowest} to 5", value


def one_of(value: str, names: tuple[str, ...]) -> tuple[bool, str, str]:
    """The rule of a choice, for `check`."""
    return value in names, "one of " + ", ".join(names), value


def whole(value: int, low: int, high: int) -> tuple[bool, str, int]:
    """The rule of a whole number, for `check`."""
    return low <= value <= high, f"a whole number from {low} to {high}", value


def nothing_to_merge(backbone: HasBody, options: Any) -> None:
    """For methods whose body holds plain torchvision tensors already."""
