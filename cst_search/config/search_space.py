"""A search space: which methods, which of their design choices, and which training settings may vary.

    methods: [cst, head]             # one is drawn first
    shared:                          # dimensions of every method: fields of the recipe
      lr: {float: [3e-4, 1e-2], log: true}
    cst:                             # dimensions that exist only when this method is drawn
      reduction: {choice: [4, 8, 16]}
      lr: {float: [1e-3, 3e-2], log: true}      # replaces the shared one for this method

A dimension is ``choice: [...]``, ``float: [low, high]`` or ``int: [low, high]``, the last two with ``log: true`` if
wanted; or ``times: [0.5, 1]``, a choice among multiples of the recipe's own value (`fit_space`). Standard library only.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from cst_search.config.recipe import FIXED_TOWER_DETECTORS, FORMER_NAMES, READING_FIELDS, Recipe, renamed_fields
from cst_search.errors import ConfigError, did_you_mean

_FIELDS = {f.name for f in fields(Recipe)} - {
    "method",
    "options",
    "origin",
    "data",
    *READING_FIELDS,
    "detections_per_image",
    "weights",
    "seed",
    "epochs",
    "search_epochs",
}


def renamed_dimensions(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a search space with every dimension that varies a recipe field under the field's name of today.

    Raises:
        ConfigError: a section has a field under both of its names.
    """
    try:
        return {
            section: renamed_fields(rules) if isinstance(rules, Mapping) else rules
            for section, rules in content.items()
        }
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def fit_space(
    content: Mapping[str, Any], recipe: Recipe, where: str, starts_trained: bool = True
) -> tuple[dict[str, Any], list[str]]:
    """Return a search space fitted to one recipe, and a note on the dimensions left out.

    ``times: [0.5, 1]`` becomes a choice among that many times the recipe's value, rounded to whole numbers for a field
    that holds one. ``neck`` and ``head`` are left out if the recipe's weights leave them random, and what decides the
    shapes of tensors if the weights fix these.

    Args:
        starts_trained: False if a weights file proved to hold a body alone.

    Raises:
        ConfigError: ``times`` stands at something that is no number of the recipe.
    """
    fitted: dict[str, Any] = {}
    reasons = _unvaried(recipe, starts_trained and recipe.has_trained_detector)
    left_out: set[str] = set()
    for section, rules in content.items():
        fitted[section] = rules
        if not isinstance(rules, Mapping):
            continue
        fitted[section] = dict(rules)
        for name, rule in rules.items():
            if name in reasons:
                left_out.add(name)
                del fitted[section][name]
            elif isinstance(rule, Mapping) and "times" in rule:
                fitted[section][name] = {"choice": _multiples(recipe, name, rule, f"{where}: {section}.{name}")}
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        if name in left_out:
            by_reason.setdefault(reason, []).append(name)
    return fitted, [f"{' and '.join(names)} not varied: {reason}" for reason, names in by_reason.items()]


def _unvaried(recipe: Recipe, starts_trained: bool) -> dict[str, str]:
    """Return the fields that a search from this recipe cannot vary, each with the reason."""
    weights, found = recipe.weights_kind, {}
    if weights not in ("COCO", "IMAGENET", "none"):  # one file, which fits one network
        found = dict.fromkeys(("backbone", "width"), f"weights {weights} are of one backbone")
    if not starts_trained:
        found |= dict.fromkeys(("neck", "head"), f"weights {weights} leave neck and heads random, all is trained")
        if recipe.detector in FIXED_TOWER_DETECTORS:
            found["head_convs"] = f"the heads of {recipe.detector} have a fixed number of convolutions"
        return found
    fixed = ("fpn_channels", "head_convs") if weights == "COCO" else ("detector", "fpn_channels", "head_convs")
    return found | dict.fromkeys(fixed, f"weights {weights} are a trained detector, which keeps its neck and heads")


def _multiples(recipe: Recipe, name: str, rule: Mapping[str, Any], where: str) -> list[float]:
    own = getattr(recipe, name, None) if name in _FIELDS else None
    if isinstance(own, bool) or not isinstance(own, int | float):
        raise ConfigError(f"{where}: times needs a field of the recipe that holds a number")
    factors = rule["times"]
    fine = isinstance(factors, list) and factors
    if set(rule) != {"times"} or not fine or not all(isinstance(f, int | float) and 0 < f < _BEYOND for f in factors):
        raise ConfigError(f"{where} must be {{times: [...]}} with numbers above 0; got {rule!r}")
    values = [factor * own for factor in factors]
    return list(dict.fromkeys(max(1, round(value)) if isinstance(own, int) else value for value in values))


_BEYOND = 2**63  # integers above are none for a database, and above 10**308 no floats either; not so for NaN


@dataclass(frozen=True)
class Dimension:
    """One dimension of a search space.

    Attributes:
        name: unique name in the study: ``lr``, ``cst.reduction``; ``full.lr`` if a method has its own range.
        key: name in a configuration: ``lr``, ``cst.reduction``.
        choices: values to choose from; empty for a range.
        low, high: ends of a range, both included.
        log: True if the range is sampled on a logarithmic scale.
        whole: True if the range holds whole numbers.
    """

    name: str
    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def sample(self, rng: random.Random) -> Any:
        if self.choices:
            return rng.choice(self.choices)
        if self.whole and not self.log:
            return rng.randint(round(self.low), round(self.high))
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = rng.uniform(low, high)
        value = min(max(math.exp(value) if self.log else value, self.low), self.high)
        return round(value) if self.whole else value

    def contains(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high


@dataclass(frozen=True)
class Space:
    """Methods, and the dimensions of each. ``by_method[m]`` lists the dimensions of method m, in order."""

    methods: tuple[str, ...]
    by_method: Mapping[str, tuple[Dimension, ...]]
    source: Mapping[str, Any]

    METHOD = "method"

    def configure(self, pick: Callable[[Dimension], Any]) -> dict[str, Any]:
        """Return a configuration: the method first, then its dimensions, each value chosen by ``pick``."""
        method = pick(self.method_dimension) if len(self.methods) > 1 else self.methods[0]
        return {self.METHOD: method} | {dimension.key: pick(dimension) for dimension in self.by_method[method]}

    @property
    def method_dimension(self) -> Dimension:
        return Dimension(self.METHOD, self.METHOD, choices=self.methods)

    def sample(self, rng: random.Random) -> dict[str, Any]:
        return self.configure(lambda dimension: dimension.sample(rng))

    def ends(self) -> Iterator[dict[str, Any]]:
        """Yield configurations that together contain every choice and both ends of every range."""
        for method in self.methods:
            dimensions = self.by_method[method]
            values = {d.key: d.choices or (d.low, d.high) for d in dimensions}
            first = {self.METHOD: method} | {key: several[0] for key, several in values.items()}
            yield first
            yield from (first | {key: value} for key, several in values.items() for value in several[1:])

    def dimensions(self) -> list[Dimension]:
        """Return all dimensions, the method first if it may vary."""
        method = [self.method_dimension] if len(self.methods) > 1 else []
        return list({d.name: d for d in [*method, *(d for dims in self.by_method.values() for d in dims)]}.values())

    def keys(self) -> list[str]:
        """Return every key that a configuration of this space can have, the method first."""
        keys = {self.METHOD: None} | {d.key: None for dims in self.by_method.values() for d in dims}
        return list(keys)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str = "search space") -> Space:
        """Check and read a space. Raises ConfigError with every fault."""
        faults: list[str] = []
        methods = content.get("methods")
        if not isinstance(methods, list) or not methods or not all(isinstance(m, str) for m in methods):
            raise ConfigError(f"{where}: `methods` must be a list of one or more method names; got {methods!r}")
        if len(set(methods)) != len(methods):
            faults.append(f"methods has a name twice: {methods!r}")
        unknown = [str(name) for name in content if name not in {"methods", "shared", *methods}]
        if unknown:
            faults.append(
                f"no such section: {', '.join(unknown)}; a space has methods, shared, and one section per listed method"
                f"{did_you_mean(unknown[0], ('methods', 'shared', *methods))}"
            )
        shared = _dimensions(content.get("shared"), None, faults)
        by_method: dict[str, tuple[Dimension, ...]] = {}
        for method in methods:
            own = _dimensions(content.get(method), method, faults)
            own_keys = {d.key for d in own}
            by_method[method] = (*own, *(d for d in shared if d.key not in own_keys))
        if faults:
            raise ConfigError(f"{where}: " + "; ".join(faults))
        return cls(tuple(methods), by_method, dict(content))


def _dimensions(section: Any, method: str | None, faults: list[str]) -> tuple[Dimension, ...]:
    place = method or "shared"
    if section is None:
        return ()
    if not isinstance(section, dict):
        faults.append(f"{place} must hold `name: {{choice: [...]}}` lines; got {section!r}")
        return ()
    found = []
    try:
        renamed_fields(section)
    except ConfigError as error:
        faults.append(f"{place}: {error}")
        return ()
    for name, rule in section.items():
        # a parameter of a stored study keeps its name; its key is the field as it is called today
        field = FORMER_NAMES.get(str(name), str(name))
        is_field = field in _FIELDS
        if method is None and not is_field:
            faults.append(
                f"shared.{name} is not a field of the recipe that may vary; those are {', '.join(sorted(_FIELDS))}"
                f"{did_you_mean(str(name), _FIELDS)}"
            )
            continue
        key = field if is_field else f"{method}.{name}"
        dimension = _dimension(name if method is None else f"{method}.{name}", key, rule, f"{place}.{name}", faults)
        if dimension is not None:
            found.append(dimension)
    return tuple(found)


def _dimension(name: str, key: str, rule: Any, place: str, faults: list[str]) -> Dimension | None:
    kinds = [kind for kind in ("choice", "float", "int") if isinstance(rule, dict) and kind in rule]
    if len(kinds) != 1 or set(rule) - {kinds[0], "log"}:
        faults.append(
            f"{place} must be one of {{choice: [...]}}, {{float: [low, high]}}, {{int: [low, high]}}, "
            f"{{times: [...]}}; got {rule!r}"
        )
        return None
    kind, log = kinds[0], rule.get("log", False)
    values = rule[kind]
    if not isinstance(values, list) or not values:
        faults.append(f"{place}: {kind} needs a list; got {values!r}")
        return None
    if kind == "choice":
        choices = tuple(tuple(v) if isinstance(v, list) else v for v in values)
        try:
            differ = len(set(choices)) == len(choices)
        except TypeError:  # not hashable: a mapping, or a list in a list
            faults.append(f"{place}: a choice is a value or a list of values; got {values!r}")
            return None
        if not differ or "log" in rule:
            faults.append(f"{place}: choices must differ and have no log; got {values!r}")
            return None
        return Dimension(name, key, choices=choices)
    numeric = len(values) == 2 and all(
        isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < _BEYOND for v in values
    )
    whole = kind == "int"
    if not numeric or not values[0] < values[1] or (whole and not all(isinstance(v, int) for v in values)):
        faults.append(f"{place}: {kind} needs [low, high] with low < high; got {values!r}")
        return None
    if not isinstance(log, bool) or (log and values[0] <= 0):
        faults.append(f"{place}: log is true or false, and needs low above 0; got {rule!r}")
        return None
    return Dimension(name, key, low=values[0], high=values[1], log=log, whole=whole)
