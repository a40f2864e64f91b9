"""Cache of the feature maps of a frozen backbone, computed once per image and flip: see `Backbone.features`.

A batch is read from the cache only if reading gives the computed result: bit for bit on a CPU, up to the rounding of
the kernels on a GPU. The backbone's body is frozen as a whole and keeps no statistics, so a feature map depends on the
image, the flip, the padded size, and the number of images in the batch, by which libraries choose their kernels. So

* feature maps are cached for images whose own padded size is the most common one, and a batch is read if all its images
  are among them: torchvision pads a batch to its largest image and to a multiple of 32, which then is this size;
* a batch with another number of images (the last of an epoch) is computed;
* the number of images is part of the key, as are the threads, the device, the precision and the versions.

A batch that cannot be read is computed and cached, its mirror image too. Otherwise, with half of the images flipped, a
batch of four would be complete after one epoch in one of sixteen cases. The mirrored pass runs first, so that the
feature maps of two passes are never in memory at the same time.

Caching pays off on some machines only. The first batches are computed, written and read back against the clock, and
`decide` chooses. Device memory never exceeds the prediction: a batch that is read allocates the feature maps in use,
and skips the forward pass, which would hold all feature maps and its own activations.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from cst_search.backbone.resnet import STAGES, Body
from cst_search.config.recipe import Recipe
from cst_search.data.disk_cache import Slots, Store
from cst_search.data.images import CocoImages
from cst_search.detector.pyramid import Backbone
from cst_search.petl import get_method
from cst_search.trial.engine import Precision
from cst_search.units import format_bytes

_STRIDE = 32  # torchvision pads a batch to multiples of it
_N_TIMED = 3  # batches that are timed, after one for warm-up
_GAIN = 0.95  # reading must take less than this share of computing; a smaller gain is noise

Batch = tuple[list[Tensor], list[dict[str, Any]]]


# --- cost of caching --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Costs:
    """Measured seconds per image: the backbone's forward pass, writing the feature maps in use, reading them."""

    compute: float
    write: float
    read: float


@dataclass(frozen=True)
class Passes:
    """Passes of a trial over the images of a split.

    Attributes:
        n_epochs: number of passes over the split in one trial.
        n_views: 2 if images are flipped, else 1.
        share: share of the images, 0..1, that come in batches which can be read.
        filled: share of the views, 0..1, that are already cached.
    """

    n_images: int
    n_epochs: int
    n_views: int
    share: float = 1.0
    filled: float = 0.0


@dataclass(frozen=True)
class Decision:
    use: bool
    why: str


def decide(costs: Costs, splits: Iterable[Passes], n_trials: int, needed_bytes: int, has_room: bool) -> Decision:
    """Decide if caching takes less time than computing, summed over all trials that share the feature maps.

    Every view is computed and written once, in the first pass, and later passes read it. Batches that cannot be read
    are computed in both cases.

    Args:
        n_trials: number of trials with these passes, this one included.
    """
    size = format_bytes(needed_bytes)
    if not has_room:
        return Decision(False, f"features computed: {size} of them do not fit into what --cache-size leaves")
    computing = reading = 0.0
    for split in splits:
        n = split.n_images * split.share
        passes = n * split.n_epochs * n_trials
        missing = n * (1 - split.filled) if passes else 0.0  # computed in the first pass, mirrored views too
        computing += passes * costs.compute
        reading += missing * split.n_views * (costs.compute + costs.write) + (passes - missing) * costs.read
    times = f"an image computed in {costs.compute * 1e3:.1f} ms, written in {costs.write * 1e3:.1f}, read in "
    times += f"{costs.read * 1e3:.1f}"
    if computing <= 0:
        return Decision(False, "features computed: there is no pass over a whole batch of one padded size")
    if reading > _GAIN * computing:
        return Decision(False, f"features computed: keeping {size} would not be quicker ({times})")
    return Decision(True, f"features kept: {size}, {1 - reading / computing:.0%} less time in the body ({times})")


# --- feature maps ----------------------------------------------------------------------------------------------------


class _Watched(OrderedDict[str, Tensor]):
    """Feature maps that record which of them are used."""

    seen: set[str] | None = None

    def __getitem__(self, key: str) -> Tensor:
        if self.seen is not None:
            self.seen.add(key)
        return super().__getitem__(key)


@dataclass
class _Split:
    """Cached feature maps of one split: one slot per image, and the next for its mirror image if images are flipped."""

    images: CocoImages
    n_epochs: int
    padded_hw: tuple[int, int]
    places: dict[int, int] = field(default_factory=dict)  # index of an image -> its first slot
    slots: dict[str, Slots] = field(default_factory=dict)  # by name of the feature map

    def __post_init__(self) -> None:
        indices = [i for i, hw in enumerate(padded_sizes(self.images)) if hw == self.padded_hw]
        self.places = {i: n * self.n_views for n, i in enumerate(indices)}

    @property
    def n_views(self) -> int:
        return 2 if self.images.hflip else 1

    @property
    def n_slots(self) -> int:
        return len(self.places) * self.n_views


def padded_sizes(images: CocoImages) -> list[tuple[int, int]]:
    """Return the padded (height, width) of each image in a batch by itself."""
    return [(-(-height // _STRIDE) * _STRIDE, -(-width // _STRIDE) * _STRIDE) for height, width in images.sizes_hw]


def is_frozen(body: Body) -> bool:
    """Return True if nothing in the body is trained and it runs without autograd, so its feature maps are fixed."""
    return body.grad_from >= len(STAGES) and not any(p.requires_grad for p in body.parameters())


class FrozenFeatures:
    """Replacement for a frozen body: returns the feature maps of a batch, read from the cache or computed.

    `follow` announces which batch comes next. A batch that was not announced is computed.

    Attributes:
        decision: result of `decide`; None until enough batches are measured.
    """

    def __init__(
        self, backbone: Backbone, store: Store, identity: dict[str, Any], batch_size: int,
        n_epochs: dict[CocoImages, int],
    ) -> None:  # fmt: skip
        self.decision: Decision | None = None
        self._backbone, self._body = backbone, backbone.body
        self._store, self._identity, self._batch_size = store, identity, batch_size
        sizes = Counter(hw for images in n_epochs for hw in padded_sizes(images))
        self._padded_hw = sizes.most_common(1)[0][0]
        self._splits = {id(images): _Split(images, n, self._padded_hw) for images, n in n_epochs.items()}
        self._batch: tuple[_Split, list[tuple[int, int]], list[int]] | None = None
        self._keys: set[str] = set()  # names of the feature maps in use
        self._maps: dict[str, tuple[torch.Size, torch.dtype]] | None = None
        self._opened: bool | None = None
        self._timed: list[Costs] = []
        self._computed = 0.0  # seconds per image
        self._n_read, self._read_seconds = 0, 0.0

    def follow(self, images: CocoImages, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the same batches, announcing each one first."""
        split = self._splits.get(id(images))
        for batch in batches:
            targets = batch[1]
            if split is not None and len(targets) == self._batch_size:
                views = [(int(target["index"]), int(target["is_flipped"])) for target in targets]
                if all(i in split.places for i, _ in views):
                    widths = [image.shape[-1] for image in batch[0]]
                    self._batch = split, views, widths
            yield batch
            self._batch = None
        self._look_again()

    def __call__(self, x: Tensor) -> OrderedDict[str, Tensor]:
        batch, self._batch = self._batch, None
        off = self.decision is not None and not self.decision.use
        if off or batch is None or x.shape != (self._batch_size, 3, *self._padded_hw):
            return self._body(x)
        if self._maps is None:
            return self._first(x)
        split, views, widths = batch
        if self._opened is None:
            self._open()
        if self.decision is None:
            return self._measure(x, split, views, widths)
        begun = time.perf_counter()  # wall time on the host: a slow disk shows without waiting for the GPU
        found = self._read(x.device, split, views)
        if found is not None:
            self._n_read += len(views)
            self._read_seconds += time.perf_counter() - begun
            return found
        self._keep_mirrored(x, split, views, widths)
        features = self._body(x)
        self._write(features, split, views)
        return features

    def detach(self) -> None:
        """Let the backbone compute again, and close the files."""
        self._backbone.features = None
        self._close()

    # --- the first batches --------------------------------------------------------------------------------------------

    def _first(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Compute one of the first batches and record which feature maps are used, with their shapes and dtypes."""
        maps = self._body(x)
        self._maps = {key: (value.shape[1:], value.dtype) for key, value in maps.items()}
        watched = _Watched(maps)
        watched.seen = self._keys
        return watched

    def _open(self) -> None:
        self._keys.discard("image")
        assert self._maps is not None
        self._maps = {key: self._maps[key] for key in sorted(self._keys)}
        self._opened = True
        for split in self._splits.values():
            identity = self._identity | {
                "images": split.images.content_key(),
                "indices": list(split.places) if len(split.places) < len(split.images) else "all",
                "padded": self._padded_hw,
                "batch": self._batch_size,
            }
            for key, (shape, dtype) in self._maps.items():
                identity["map"] = [key, list(shape), str(dtype)]
                slots = self._store.open("features", identity, [shape.numel() * dtype.itemsize] * split.n_slots)
                if slots is None:
                    self._opened = False
                    return
                split.slots[key] = slots

    def _measure(
        self, x: Tensor, split: _Split, views: list[tuple[int, int]], widths: list[int]
    ) -> OrderedDict[str, Tensor]:
        if not self._opened:
            self._decide()
            return self._body(x)
        self._keep_mirrored(x, split, views, widths)
        times = [_now(x.device)]
        features = self._body(x)
        times.append(_now(x.device))
        self._write(features, split, views)
        times.append(_now(x.device))
        del features  # otherwise the device would hold them twice
        found = self._read(x.device, split, views)
        times.append(_now(x.device))
        seconds = [(after - before) / len(views) for before, after in itertools.pairwise(times)]
        self._timed.append(Costs(*seconds))
        if len(self._timed) == _N_TIMED:
            self._decide()
        return self._body(x) if found is None else found

    def _decide(self) -> None:
        assert self._maps is not None
        one = sum(shape.numel() * dtype.itemsize for shape, dtype in self._maps.values())
        needed = one * sum(split.n_slots for split in self._splits.values())
        timed = self._timed or [Costs(0, 0, 0)]
        costs = Costs(median(t.compute for t in timed), median(t.write for t in timed), median(t.read for t in timed))
        passes = []
        for split in self._splits.values():
            n = len(split.images)
            # all images of a batch must have the common size, and the last batch of an epoch must be full
            share = (len(split.places) / n) ** self._batch_size * (n // self._batch_size * self._batch_size / n)
            filled = min((float(s.is_filled().mean()) for s in split.slots.values()), default=0.0)
            passes.append(Passes(n, split.n_epochs, split.n_views, share, filled))
        self.decision = decide(costs, passes, self._store.cache.n_trials, needed, bool(self._opened))
        self._store.notes.append(self.decision.why)
        self._computed = costs.compute
        if not self.decision.use:
            self._close()

    def _look_again(self) -> None:
        """Check the decision after an epoch: reads that were timed in the page cache may now come from a slow disk."""
        if self.decision is None or not self.decision.use or not self._n_read:
            return
        read = self._read_seconds / self._n_read
        self._n_read, self._read_seconds = 0, 0.0
        if read > self._computed:
            why = f"features computed from now on: read in {read * 1e3:.1f} ms an image, which is slower than computing"
            self.decision = Decision(False, why)
            self._store.notes.append(why)
            self._close()

    def _close(self) -> None:
        for split in self._splits.values():
            split.slots.clear()

    # --- reading and writing ------------------------------------------------------------------------------------------

    def _read(
        self, device: torch.device, split: _Split, views: list[tuple[int, int]]
    ) -> OrderedDict[str, Tensor] | None:
        assert self._maps is not None
        if not self._has(split, views):
            return None
        found: OrderedDict[str, Tensor] = OrderedDict()
        for key, (shape, dtype) in self._maps.items():
            maps = torch.empty((len(views), *shape), dtype=dtype, pin_memory=device.type == "cuda")
            raw = _bytes(maps)
            for n, view in enumerate(views):
                if not split.slots[key].read(_slot(split, view), raw[n]):
                    return None
            found[key] = maps.to(device, non_blocking=True)
        return found

    def _keep_mirrored(self, x: Tensor, split: _Split, views: list[tuple[int, int]], widths: list[int]) -> None:
        mirrored = [(i, 1 - flipped) for i, flipped in views]
        if split.n_views == 2 and not self._has(split, mirrored):
            _mirror(x, widths)  # in place: a second batch of images would exceed the predicted memory
            self._write(self._body(x), split, mirrored)
            _mirror(x, widths)

    def _has(self, split: _Split, views: list[tuple[int, int]]) -> bool:
        return all(slots.has(_slot(split, view)) for slots in split.slots.values() for view in views)

    def _write(self, features: OrderedDict[str, Tensor], split: _Split, views: list[tuple[int, int]]) -> None:
        for key, slots in split.slots.items():
            raw = _bytes(features[key].detach().cpu().contiguous())
            for n, view in enumerate(views):
                slots.write(_slot(split, view), raw[n])


def _slot(split: _Split, view: tuple[int, int]) -> int:
    index, flipped = view
    return split.places[index] + flipped


def _bytes(maps: Tensor) -> np.ndarray:
    """View feature maps as uint8 (B, bytes per image) without a copy; numpy has no bfloat16."""
    return maps.flatten(1).view(torch.uint8).numpy()


def _mirror(x: Tensor, widths: list[int]) -> None:
    """Flip each image of a padded batch in place, within its own width. Flipping twice restores the batch."""
    for n, width in enumerate(widths):
        x[n, :, :, :width] = x[n, :, :, :width].flip(-1)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# --- for a trial ------------------------------------------------------------------------------------------------------


def frozen_features(
    model: nn.Module, recipe: Recipe, store: Store | None, n_epochs: dict[CocoImages, int], *,
    device: torch.device, precision: Precision,
) -> FrozenFeatures | None:  # fmt: skip
    """Attach a feature cache to a detector whose body is frozen. Returns None if that is not possible.

    With images that augmentation changes it says so in the notes of the store.

    Args:
        n_epochs: number of passes of a trial over each of these image sets.
    """
    backbone = model.backbone
    assert isinstance(backbone, Backbone)
    if store is None or not get_method(recipe.method).side or not is_frozen(backbone.body) or not backbone.body_hash:
        return None
    if any(images.augmentation.changes_images for images in n_epochs):
        store.notes.append("features computed: augmentation changes the images in every epoch")
        return None
    body = backbone.body
    identity = {
        "base": backbone.body_hash,
        "body": [body.name, body.width, body.frozen_norm, recipe.memsave],
        "precision": str(precision.dtype),
        "versions": [torch.__version__, torchvision.__version__],
        "device": _device_identity(device),
    }
    found = FrozenFeatures(backbone, store, identity, recipe.batch_size, n_epochs)
    backbone.features = found
    return found


def _device_identity(device: torch.device) -> list[Any]:
    """Return what the last bits of a feature map depend on, library versions aside."""
    if device.type == "cuda":
        backends = torch.backends
        return [torch.cuda.get_device_name(device), backends.cudnn.version(), backends.cudnn.allow_tf32]
    return [torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), torch.backends.mkldnn.is_available()]


def following(features: FrozenFeatures | None, images: CocoImages, batches: Iterable[Batch]) -> Iterable[Batch]:
    """Return the batches, announced to the feature cache if there is one."""
    return batches if features is None else features.follow(images, batches)
