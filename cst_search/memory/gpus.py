"""Known cards and what CUDA takes on them: the table `devices.yaml`, and lookup by a freely spelt name.

Needs no torch: `estimate --device "RTX 3060 12GB"` also runs on machines without a GPU.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cst_search.errors import ConfigError, UnitError
from cst_search.memory.gpu_costs import GENERIC, GpuCosts
from cst_search.memory.gpu_profile import local_costs
from cst_search.units import format_bytes, parse_bytes

_TABLE = Path(__file__).with_name("devices.yaml")
# words that vendors, shops and nvidia-smi add to the distinctive part of a card's name
_NOISE = re.compile(r"nvidia|geforce|tesla|quadro|rtx|gtx|gpu|sxm\d?|pcie?|hbm\d?e?|[^a-z0-9]")


@dataclass(frozen=True)
class Architecture:
    """Generation of GPUs.

    Attributes:
        capability: the first numbers of its compute capability.
        blas_workspace_bytes: of cuBLAS in one thread.
        bf16, tf32: whether its tensor cores have these formats.
        context_bytes, context_with_blas_bytes: see `gpu_costs.GpuCosts`; None: unmeasured.
    """

    name: str
    capability: tuple[int, ...]
    blas_workspace_bytes: int
    bf16: bool
    tf32: bool
    source: str
    context_bytes: int | None = None
    context_with_blas_bytes: int | None = None
    note: str = ""

    @property
    def is_measured(self) -> bool:
        return self.context_bytes is not None

    def costs(self, target: str) -> GpuCosts:
        """Return the costs of a GPU of this kind; what is unmeasured is as on the H100."""
        return GpuCosts(
            self.context_bytes or GENERIC.context_bytes,
            self.context_with_blas_bytes or GENERIC.context_with_blas_bytes,
            2 * self.blas_workspace_bytes,
            target,
        )


@dataclass(frozen=True)
class Card:
    """GPU model. ``memory_bytes`` is the total shown by nvidia-smi, ``usable_bytes`` the part available under CUDA."""

    name: str
    architecture: str
    vendor_gb: int
    memory_bytes: int
    usable_bytes: int
    source: str
    aliases: tuple[str, ...] = ()
    note: str = ""

    def names(self) -> tuple[str, ...]:
        """Return all names of the card, the main one first; names without the memory size also come with it."""
        sized = () if self.name.endswith("GB") else (f"{self.name} {self.vendor_gb}GB",)
        return (self.name, *sized, *self.aliases)


@cache
def _table() -> dict[str, list[dict[str, Any]]]:
    import yaml  # imported here because a trial does not need it

    table: dict[str, list[dict[str, Any]]] = yaml.safe_load(_TABLE.read_text(encoding="utf-8"))
    return table


@cache
def cards() -> tuple[Card, ...]:
    """Return the cards of the table, in its order: by kind and generation."""
    return tuple(Card(**{**entry, "aliases": tuple(entry.get("aliases", ()))}) for entry in _table()["cards"])


@cache
def architectures() -> dict[str, Architecture]:
    """Return the architectures of the table by name, the oldest first."""
    entries = _table()["architectures"]
    return {entry["name"]: Architecture(**{**entry, "capability": tuple(entry["capability"])}) for entry in entries}


def costs_of(card: Card, calibrated: GpuCosts) -> GpuCosts:
    """Return the costs of a card: those that were calibrated if they are this card's, else its architecture's."""
    key = _key(calibrated.target)
    if calibrated is not GENERIC and any(_key(known) in (key, f"{key}{card.vendor_gb}gb") for known in card.names()):
        return calibrated
    return architectures()[card.architecture].costs(card.name)


def card_notes(card: Card, precision: str) -> list[str]:
    """Return what a prediction for a card is based on, and what its owner should know.

    Args:
        precision: of the recipe.
    """
    kind = architectures()[card.architecture]
    notes = [note for note in (card.note, kind.note) if note]
    if not kind.bf16 and precision == "bf16":
        notes.append("it has no bf16 in hardware and emulates it slowly: precision=auto trains in fp16")
    if not kind.is_measured and costs_of(card, local_costs()).target == card.name:
        unmeasured = (
            f"the CUDA context, taken to be the H100's, {format_bytes(GENERIC.context_with_blas_bytes)} at most"
        )
        if not kind.tf32 and precision == "fp32":
            unmeasured += "; the workspaces of convolutions in fp32 without TF32"
        notes.append(f"unmeasured on {kind.name}: {unmeasured}")
    return [f"{card.name}: {note}" for note in notes]


def find_card(name: str) -> Card:
    """Return the card called ``name``, matched loosely ("nvidia-geforce rtx3060 12 GB").

    Raises:
        ConfigError: no card or several cards match; the message lists the closest ones.
    """
    called: dict[str, list[Card]] = {}
    for card in cards():
        for known in {_key(known) for known in card.names()}:
            called.setdefault(known, []).append(card)
    key = _key(name)
    found = called.get(key, [])
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"--device {name!r} is the name of several cards: {_list(found)}; give one of these")
    near = [card for known in difflib.get_close_matches(key, called, n=4, cutoff=0.6) for card in called[known]]
    which = f"near it: {_list(near)}" if near else f"known are {_list(list(cards()))}"
    raise ConfigError(f"--device must be a card of the table; got {name!r}; {which}; or give its memory: --fit 12GB")


def memory_budget(size: str | None, card: Card | None) -> int | None:
    """Return the bytes of ``--fit SIZE``, else the card's usable bytes; None if neither is given.

    Raises:
        UnitError: the size is misspelt.
        ConfigError: the size is above the card's usable memory.
    """
    if size is None:
        return None if card is None else card.usable_bytes
    try:
        wanted = parse_bytes(size)
    except UnitError as error:
        raise UnitError(f"--fit: {error}") from None
    if card is not None and wanted > card.usable_bytes:
        raise ConfigError(
            f"--fit must be within what --device can give ({card.name}: {format_bytes(card.usable_bytes)}); "
            f"got {size!r}; leave one of the two away, or make --fit smaller"
        )
    return wanted


def _key(name: str) -> str:
    return _NOISE.sub("", name.lower().replace("gib", "gb"))


def _list(found: list[Card]) -> str:
    return ", ".join(dict.fromkeys(card.name for card in found))
