"""Match the classes of the splits of a data set by name: ids, order and spelling may differ from file to file."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping

from cst_search.data.validation.findings import Findings
from cst_search.data.validation.listed import ListedSplit


def match_classes(listed: Mapping[str, ListedSplit], faults: Findings, notes: Findings) -> None:
    """Give every split the categories of the training split, and its boxes the ids of these.

    Names are compared as written, then without case, spaces, hyphens and underscores. A class of another split that
    the training split does not have is a fault if it has boxes there, else it is left out.
    """
    if not listed:
        return
    first = listed.get("train") or next(iter(listed.values()))
    for split in listed.values():
        if split.categories != first.categories:
            _match(split, first, faults, notes)


def _match(split: ListedSplit, first: ListedSplit, faults: Findings, notes: Findings) -> None:
    boxes = [box for image in split.images if image.usable for box in image.written]
    n_boxes = Counter(box.category_id for box in boxes)
    found = {category_id: _id_of(title, first.categories) for category_id, title in split.categories.items()}
    for category_id, title in split.categories.items():
        same = found[category_id]
        if same is not None:
            differs = [f"id {category_id}, there {same}"] if category_id != same else []
            differs += [f"spelt {first.categories[same]} there"] if title != first.categories[same] else []
            if differs:
                notes.add("class-matched", split.name, f"{title} ({', '.join(differs)})")
        elif n_boxes[category_id]:
            near = difflib.get_close_matches(title, first.categories.values(), 1)
            hint = f"; nearest there: {near[0]}" if near else ""
            faults.add("categories-differ", split.name, f"{title} ({n_boxes[category_id]} boxes{hint})")
        else:
            notes.add("class-only-here", split.name, title)
    for box in boxes:
        same = found[box.category_id]
        box.category_id = box.category_id if same is None else same  # None: a fault is reported
    split.categories = dict(first.categories)


def _id_of(title: str, categories: Mapping[int, str]) -> int | None:
    """Return the id of the one category of a name, or of a name that differs in spelling only; None: there is none."""
    for same in (str, _folded):
        ids = [category_id for category_id, other in categories.items() if same(other) == same(title)]
        if len(ids) == 1:
            return ids[0]
    return None


def _folded(title: str) -> str:
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", title).casefold())
