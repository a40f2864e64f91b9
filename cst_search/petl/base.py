"""The contract that every PETL method implements.

A method receives a backbone whose body is entirely frozen; all stages run without autograd. The method may unfreeze or
replace modules of the body (and then sets the first stage that needs autograd), attach a side network, or both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

from cst_search.config.recipe import wrong_kinds
from cst_search.errors import ConfigError, did_you_mean
from cst_search.memory.plan import MemoryPlan
from cst_search.memory.resnet_shapes import BackboneShape

if TYPE_CHECKING:
    from torch import Tensor

    from cst_search.backbone.resnet import Body
    from cst_search.petl.modules.side_network import SideNetwork


class HasBody(Protocol):
    """Part of `detector.pyramid.Backbone` that methods modify."""

    body: Body
    side: SideNetwork | None
    used_stages: tuple[int, ...]


@dataclass(frozen=True)
class Method:
    """PETL method, built-in or from another package: the whole contract between a method and the rest of cst_search.

    ``options`` defines the names and defaults used in recipes, in ``--set NAME.option=value`` and in search spaces.
    ``footprint`` and ``petl_params`` give the cost of a configuration before it runs. A search within a budget needs
    both; there is no fallback guess.

    Attributes:
        name: name in recipes and search spaces.
        options: frozen dataclass; its defaults are the method's defaults, its ``__post_init__`` checks ranges.
        lr: default peak learning rate with AdamW.
        side: True if nothing re-enters the body, so that no gradient crosses it (a tested invariant).
        source: origin of the method and its defaults.
        apply: function that changes the backbone in place.
        petl_params: closed formula for the number of parameters that the method adds or unfreezes.
        footprint: changes to the backbone as shapes, for predicted memory.
        shapeless: options that change no tensor's shape, so that their values share one memory prediction.
        prepare: data-dependent initialisation, run before the optimiser is made. It receives the training losses of
            single images, one at a time, through the detector as built; it unfreezes the tensors whose gradients it
            needs and freezes them again. Loading saved weights skips it. `MemoryPlan.start` describes its memory.
        merge: function that turns the changed body back into plain torchvision tensors with the same output, in place;
            None where an exact merge is impossible. It may raise ConfigError for some options.
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
        """Return the options with defaults filled in. Raises ConfigError on an unknown name or a value out of range."""
        known = [f.name for f in fields(self.options)]
        unknown = [name for name in values if name not in known]
        if unknown:
            raise ConfigError(
                f"method {self.name!r} has no option {', '.join(map(repr, unknown))}; "
                f"it has {', '.join(known) or 'none'}{did_you_mean(unknown[0], known)}"
            )
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        if faults := wrong_kinds(self.options, given):
            raise ConfigError(f"{self.name}: " + "; ".join(faults))
        return self.options(**given)


@dataclass(frozen=True)
class NoOptions:
    """Options of a method that has none."""


def check(method: str, rules: Mapping[str, tuple[bool, str, Any]]) -> None:
    """Raise ConfigError if an option breaks its rule; ``rules``: option -> (rule holds, rule in words, value)."""
    faults = [f"{name} must be {must}; got {value!r}" for name, (holds, must, value) in rules.items() if not holds]
    if faults:
        raise ConfigError(f"{method}: " + "; ".join(faults))


def from_stage(value: int, lowest: int) -> tuple[bool, str, int]:
    """Return the rule for ``first_stage``, for `check`."""
    return value in range(lowest, 6), f"a stage from {lowest} to 5", value


def one_of(value: str, names: tuple[str, ...]) -> tuple[bool, str, str]:
    """Return the rule for a choice among names, for `check`."""
    return value in names, "one of " + ", ".join(names), value


def whole(value: int, low: int, high: int) -> tuple[bool, str, int]:
    """Return the rule for a whole number, for `check`."""
    return low <= value <= high, f"a whole number from {low} to {high}", value


def nothing_to_merge(backbone: HasBody, options: Any) -> None:
    """Do nothing: merge of a method whose body already holds plain torchvision tensors."""
