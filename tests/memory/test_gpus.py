"""The table of cards: its figures hold together, and a card is found as people write it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from cst_search.errors import ConfigError, UnitError, UserError
from cst_search.memory import gpus as devices
from cst_search.memory.gpu_costs import GENERIC
from cst_search.memory.gpus import Architecture, Card, architectures, card_notes, cards, find_card, memory_budget

MIB = 2**20
TEXT = Path(devices.__file__).with_name("devices.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("card", cards(), ids=lambda card: card.name)
def test_the_figures_of_a_card_hold_together(card: Card) -> None:
    assert card.memory_bytes % MIB == card.usable_bytes % MIB == 0
    kept = card.memory_bytes - card.usable_bytes
    # what drivers were seen to keep; a Jetson's system more
    assert 30 * MIB < kept < (0.08 * card.memory_bytes if card.name.startswith("Jetson") else 700 * MIB)
    # a box says GB and means GiB, less what ECC takes (an A10: 6 %); an H200's 141 GB are powers of ten
    assert 0.92 * card.vendor_gb * 10**9 < card.memory_bytes <= card.vendor_gb * 2**30 * 1.02
    assert card.source.startswith(("nvidia-smi; ", "vendor's specification; "))


def test_the_mebibytes_beside_the_bytes_are_the_same() -> None:
    figures = re.findall(r"_bytes: (\d+)  # (\d+) MiB$", TEXT, re.MULTILINE)
    assert len(figures) == 2 * len(cards())
    assert all(int(n_bytes) == int(mib) * MIB for n_bytes, mib in figures)


def test_names_are_unique_and_the_sizes_in_them_true() -> None:
    names = [card.name for card in cards()]
    assert len(set(names)) == len(names)
    for card in cards():
        if size := re.search(r"(\d+)GB$", card.name):
            assert int(size[1]) == card.vendor_gb
        assert find_card(card.name) is card  # no other is called so


@pytest.mark.parametrize(
    ("written", "name", "mib"),
    [
        ("RTX 3060 12GB", "RTX 3060 12GB", 12288),
        ("nvidia-geforce_rtx3060 12 gb", "RTX 3060 12GB", 12288),
        ("GTX 1660 6GB", "GTX 1660", 6144),
        ("1660", "GTX 1660", 6144),
        ("GTX 1660 Ti", "GTX 1660 Ti", 6144),  # no other letters are dropped
        ("RTX 2060 6GB", "RTX 2060 6GB", 6144),
        ("4060 8GB", "RTX 4060", 8188),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", "RTX 4060 Laptop", 8188),  # as nvidia-smi names it
        ("RTX 4090 24GiB", "RTX 4090", 24564),
        ("T4", "T4", 15360),  # 16 GB, less ECC
        ("Tesla T4 16GB", "T4", 15360),
        ("L4", "L4", 23034),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB", 40960),
        ("A100 80GB PCIe", "A100 80GB", 81920),
        ("Tesla V100-SXM2-16GB", "V100 16GB", 16384),
        ("NVIDIA H100 80GB HBM3", "H100", 81559),
        ("H100 PCIe", "H100", 81559),
        ("H100 NVL", "H100 NVL", 95830),
        ("h200", "H200", 143771),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada", 49140),
        ("Jetson Orin Nano", "Jetson Orin Nano 8GB", 8192),
    ],
)
def test_a_card_is_found_as_people_write_it(written: str, name: str, mib: int) -> None:
    card = find_card(written)
    assert (card.name, card.memory_bytes) == (name, mib * MIB)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("A100", "is the name of several cards: A100 40GB, A100 80GB; give one of these"),
        ("geforce rtx 3060", "several cards: RTX 3060 8GB, RTX 3060 12GB"),
        ("RTX 3061", "must be a card of the table; got 'RTX 3061'; near it: RTX 3060"),
        ("RTX 4090 Ti", "RTX 4090; "),  # a near one is not taken for it
        ("RTX 3060 16GB", "near it: RTX 3060"),  # nor one of another size
        ("Orin", "Jetson Orin"),
        ("Radeon", "known are GTX 1060 3GB, "),  # nothing near: all of them
        ("", "known are GTX 1060 3GB, "),
        ("NVIDIA", "known are GTX 1060 3GB, "),
    ],
)
def test_a_name_that_is_none_or_several(written: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        find_card(written)
    assert said in str(error.value) and error.value.exit_code == 2


# --- architectures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", architectures().values(), ids=lambda kind: kind.name)
def test_an_architecture_has_what_pytorch_gives_its_capability(kind: Architecture) -> None:
    major = kind.capability[0]
    assert kind.blas_workspace_bytes == (32 * MIB if major in (9, 10, 12) else (2 * 4096 + 8 * 16) * 1024)
    assert kind.bf16 == kind.tf32 == (major >= 8)
    assert ("CUDA 13" in kind.note) == (kind.capability < (7, 5))  # what its wheels no longer run on
    assert kind.is_measured == ("measured on" in kind.source) == ("unmeasured" not in kind.source)
    assert any(card.architecture == kind.name for card in cards())


def test_the_measured_architecture_is_that_of_memory_yaml() -> None:
    assert replace(architectures()["Hopper"].costs("any"), target=GENERIC.target) == GENERIC
    assert architectures()["Ada"].costs("L4") == replace(GENERIC, blas_workspace_bytes=2 * 8519680, target="L4")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("GTX 1070 Ti", "Pascal"), ("V100 16GB", "Volta"), ("GTX 1660", "Turing"), ("RTX 2080", "Turing"),
        ("T4", "Turing"), ("A40", "Ampere"), ("AGX Orin 64GB", "Ampere"), ("RTX 3080 Ti", "Ampere"),
        ("L40S", "Ada"), ("RTX 6000 Ada", "Ada"), ("H200", "Hopper"), ("RTX 5090", "Blackwell"),
    ],
)  # fmt: skip
def test_a_card_is_of_its_architecture(name: str, kind: str) -> None:
    assert find_card(name).architecture == kind


@pytest.mark.parametrize(
    ("name", "precision", "said", "unsaid"),
    [
        ("H100", "fp32", (), ("unmeasured",)),
        ("A10", "fp32", ("unmeasured on Ampere: the CUDA context",), ("TF32", "bf16")),
        ("T4", "fp32", ("unmeasured on Turing", "without TF32", "ECC takes"), ("bf16", "CUDA 13")),
        ("T4", "bf16", ("no bf16", "precision=auto trains in fp16"), ("TF32",)),
        ("V100 16GB", "auto", ("default wheels (CUDA 13) do not run on it",), ("bf16", "TF32")),
    ],
)
def test_what_a_person_with_a_card_should_know(
    name: str, precision: str, said: tuple[str, ...], unsaid: tuple[str, ...]
) -> None:
    text = "\n".join(card_notes(find_card(name), precision))
    assert all(each in text for each in said) and not any(each in text for each in unsaid), text


# --- the budget ------------------------------------------------------------------------------------------------------

T4 = 14909 * MIB


@pytest.mark.parametrize(
    ("size", "card", "budget"),
    [
        (None, None, None),
        ("6GB", None, 6 * 10**9),
        (None, "T4", T4),
        ("6GB", "T4", 6 * 10**9),  # a part of the card
        ("14909MiB", "T4", T4),  # all of it
    ],
)
def test_the_budget(size: str | None, card: str | None, budget: int | None) -> None:
    assert memory_budget(size, card and find_card(card)) == budget


@pytest.mark.parametrize(
    ("size", "card", "kind", "said"),
    [
        ("6", None, UnitError, "must have a unit .*; write 6GB"),
        ("6GBB", None, UnitError, "6GiB"),
        ("16GB", "T4", ConfigError, r"--fit must be within what --device can give \(T4: 15.6 GB\); got '16GB'; leave"),
    ],
)
def test_budgets_that_are_none(size: str, card: str | None, kind: type[UserError], said: str) -> None:
    with pytest.raises(kind, match=said):
        memory_budget(size, card and find_card(card))
