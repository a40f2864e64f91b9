"""Split a training set that has no validation split in two, the same for every launch, machine and order of files.

The choice is a function of file contents, classes and the seed. It follows iterative stratification (Sechidis,
Tsoumakas and Vlahavas 2011, "On the Stratification of Multi-Label Data"): classes are served from the rarest on, and
each image goes where its class lacks images most. What belongs together stays together: equal files, and the augmented
copies of an original that Roboflow writes as NAME_jpg.rf.HASH.jpg.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from cst_search.data.formats.source import SplitSource
from cst_search.data.options import ReadOptions
from cst_search.data.pixels import file_digest
from cst_search.data.saved import replace_file
from cst_search.data.validation.findings import Findings
from cst_search.data.validation.listed import ListedImage, ListedSplit
from cst_search.errors import DataError

_AUGMENTED = re.compile(r"(.+)\.rf\.[0-9A-Za-z]+\.[^.]+")
_NO_OBJECT = ""  # images without objects are spread like a class
_VERSION = 1


@dataclass(frozen=True)
class _Group:
    """Images that must be in the same split."""

    rank: str  # position in the shuffled order
    images: tuple[ListedImage, ...]
    n_with: Mapping[str, int]  # class name -> number of images with objects of it


def must_make_val(folder: Path, sources: Mapping[str, SplitSource], options: ReadOptions) -> bool:
    """Return True if a validation split must be made. Raises DataError if there is one, as it would be passed over."""
    if options.val_fraction is None:
        return False
    if "val" in sources:
        raise DataError(
            f"--val-fraction (recipe field val_fraction) is for a set without a validation split, and {folder} has "
            f"{sources['val'].annotations}; leave the option out, or move that away"
        )
    return "train" in sources


def with_val(
    listed: Mapping[str, ListedSplit], options: ReadOptions, cache: Path | None, notes: Findings
) -> dict[str, ListedSplit]:
    """Return the splits with a validation split from train. The choice is kept beside the cache of checked images."""
    assert options.val_fraction is not None  # see must_make_val
    for image in listed["train"].images:
        if image.usable and not image.digest:  # it was not decoded
            image.digest = file_digest(Path(image.path).read_bytes())
    store = cache.with_name("val-splits.json") if cache else None
    train, val, is_saved = split_off(listed["train"], options.val_fraction, options.val_seed, store)
    n_val, n_all = len(val.images), len(train.images) + len(val.images)
    choice = f"val_fraction {options.val_fraction:g}, val_seed {options.val_seed}"
    notes.add("split-off", "val", f"{n_val} of {n_all} images, {choice}")
    if not is_saved:
        notes.add("split-not-saved", "val", store)
    splits = {**listed, "train": train, "val": val}
    return {name: splits[name] for name in ("train", "val", "test") if name in splits}


def split_off(
    split: ListedSplit, fraction: float, seed: int, store: Path | None
) -> tuple[ListedSplit, ListedSplit, bool]:
    """Return the training split without its validation images, these as split ``val``, and False if it was not saved.

    Of few images or with a small share, one of the two may be empty.

    Args:
        split: the training split; digests of its usable images are known, boxes are read.
        fraction: share of the images for validation.
        store: JSON file that keeps each split that was made; a stored one is used again. None: none is kept.
    """
    groups = _groups(split, seed)
    key = _content_key(split, fraction, seed)
    stored = _read_store(store)
    known = {image.digest for group in groups for image in group.images}
    digests = set(stored.get(key, {}).get("digests", ()))
    is_saved = True
    if not digests or not digests < known:
        digests = {image.digest for group in _stratified(groups, fraction) for image in group.images}
        names = sorted(image.file_name for image in split.images if image.digest in digests)
        entry = {"fraction": fraction, "seed": seed, "digests": sorted(digests), "file_names": names}
        document = {"version": _VERSION, "splits": stored | {key: entry}}
        is_saved = store is None or replace_file(store, json.dumps(document, indent=1))
    is_val = {image.image_id for image in split.images if image.usable and image.digest in digests}
    return _part(split, is_val, inside=False), replace(_part(split, is_val, inside=True), name="val"), is_saved


def _part(split: ListedSplit, image_ids: set[int], inside: bool) -> ListedSplit:
    """Return the part of a split inside or outside a set of images; entries that belong to no image are outside."""
    images = [image for image in split.images if (image.image_id in image_ids) == inside]
    n_images, n_boxes = len(images), sum(len(image.written) for image in images)
    if not inside:  # entries without a usable form
        n_images += split.n_images - len(split.images)
        n_boxes += split.n_boxes - sum(len(image.written) for image in split.images)
    return replace(split, images=images, n_images=n_images, n_boxes=n_boxes)


def _groups(split: ListedSplit, seed: int) -> list[_Group]:
    """Return the groups in the order that the seed gives them."""
    usable = [image for image in split.images if image.usable]
    same_as: dict[str, str] = {}  # digest -> one of an image in the same group; the first of a group is its own

    def first(digest: str) -> str:
        while same_as.setdefault(digest, digest) != digest:
            digest = same_as[digest]
        return digest

    of_original: dict[str, str] = {}
    for image in usable:
        if match := _AUGMENTED.fullmatch(PurePosixPath(image.file_name.replace("\\", "/")).name):
            same_as[first(image.digest)] = first(of_original.setdefault(match[1], image.digest))
    members: dict[str, list[ListedImage]] = defaultdict(list)
    for image in usable:
        members[first(image.digest)].append(image)
    groups = [
        _Group(
            rank=hashlib.blake2b(f"{seed} {min(image.digest for image in images)}".encode()).hexdigest(),
            images=tuple(images),
            n_with=Counter(name for image in images for name in _classes(split, image)),
        )
        for images in members.values()
    ]
    return sorted(groups, key=lambda group: group.rank)


def _classes(split: ListedSplit, image: ListedImage) -> set[str]:
    """Return the names of the classes in an image, as ids differ between formats."""
    return {split.categories[box.category_id] for box in image.boxes if not box.iscrowd} or {_NO_OBJECT}


def _stratified(groups: Iterable[_Group], fraction: float) -> list[_Group]:
    """Return the groups for validation.

    Each class wants its share of images on both sides. The rarest class that is left is served first; each of its
    groups goes to the side that wants more images of this class, then to the one that wants more at all, then to train.
    """
    left = list(groups)
    totals: Counter[str] = Counter()
    for group in left:
        totals.update(group.n_with)
    n_images = sum(len(group.images) for group in left)
    wanted = {side: {name: share * n for name, n in totals.items()} for side, share in _shares(fraction)}
    room = {side: share * n_images for side, share in _shares(fraction)}
    chosen: list[_Group] = []
    while left:
        rarest = min((n, name) for name, n in totals.items() if n)[1]
        for group in [group for group in left if rarest in group.n_with]:
            side = max(("train", "val"), key=lambda side: (wanted[side][rarest], room[side]))
            if side == "val":
                chosen.append(group)
            room[side] -= len(group.images)
            for name, n in group.n_with.items():
                wanted[side][name] -= n
                totals[name] -= n
        left = [group for group in left if rarest not in group.n_with]
    return chosen


def _shares(fraction: float) -> tuple[tuple[str, float], ...]:
    return ("train", 1 - fraction), ("val", fraction)


def _content_key(split: ListedSplit, fraction: float, seed: int) -> str:
    """Return a key of what the choice depends on."""
    images = sorted((image.digest, sorted(_classes(split, image))) for image in split.images if image.usable)
    return hashlib.blake2b(repr((images, fraction, seed)).encode(), digest_size=16).hexdigest()


def _read_store(store: Path | None) -> dict[str, dict[str, list[str]]]:
    try:
        document = json.loads(store.read_bytes()) if store else {}
        splits: dict[str, dict[str, list[str]]] = document["splits"] if document.get("version") == _VERSION else {}
        return {key: entry for key, entry in splits.items() if all(isinstance(d, str) for d in entry["digests"])}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
