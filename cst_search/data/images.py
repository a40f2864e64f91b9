"""Load images of a split as tensors: decode, resize, cache, batch.

    train = CocoImages(data.splits["train"], image_size_px=800, max_size_px=1333, hflip=True)
    for epoch in range(epochs):
        for images, targets in loader(train, batch_size=4, shuffle=True, seed=0, epoch=epoch): ...

An image is decoded as its entry says (`decoding.Decoding`): turned by its EXIF orientation or not, for example.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from cst_search.config.augmentation import PRESETS, Augmentation
from cst_search.data.dataset import ImageEntry, Split
from cst_search.data.decoding import PLAIN, decode
from cst_search.data.disk_cache import Slots, Store
from cst_search.data.resize import resized_hw

CACHE_BYTES = 2**30  # bound of resized pixels in memory without a disk cache: 420 images of 1066x800


class _Pixels:
    """In-memory cache of resized pixels: the first images that fit into ``bound`` bytes, shared with loader processes.

    The memory is an anonymous shared mapping. Processes forked from this one read and fill it too, so it is neither
    duplicated nor lost with them, and Docker's 64 MB of /dev/shm do not limit it. Memory is committed only as it is
    filled. A pickled copy starts empty.
    """

    def __init__(self, sizes_hw: list[tuple[int, int]], bound: int) -> None:
        self._made_from = sizes_hw, bound
        ends = np.cumsum([0] + [3 * height * width for height, width in sizes_hw])
        self.n_kept = int(np.searchsorted(ends, bound, side="right")) - 1
        self._places = [(int(ends[i]), *sizes_hw[i]) for i in range(self.n_kept)]
        n_bytes = int(ends[self.n_kept])
        self._memory = np.frombuffer(mmap.mmap(-1, max(1, n_bytes)), np.uint8)
        self._is_filled = np.frombuffer(mmap.mmap(-1, max(1, self.n_kept)), np.uint8)

    def __reduce__(self) -> tuple[type[_Pixels], tuple[list[tuple[int, int]], int]]:
        return _Pixels, self._made_from

    def get(self, i: int) -> np.ndarray | None:
        """Return the pixels of image i, read-only uint8 (3, H, W), or None if they are not cached (yet)."""
        return self._place(i) if i < self.n_kept and self._is_filled[i] else None

    def put(self, i: int, pixels: np.ndarray) -> None:
        if i < self.n_kept:
            self._place(i)[:] = pixels
            self._is_filled[i] = 1  # last, so that readers see complete images only

    def _place(self, i: int) -> np.ndarray:
        start, height, width = self._places[i]
        return self._memory[start : start + 3 * height * width].reshape(3, height, width)


class _StoredPixels:
    """Disk cache of resized pixels: the first images that fit, shared by trials and later launches."""

    def __init__(self, slots: Slots | None, sizes_hw: list[tuple[int, int]]) -> None:
        self._slots, self._sizes_hw = slots, sizes_hw

    def get(self, i: int) -> np.ndarray | None:
        """Return the pixels of image i, uint8 (3, H, W), or None if they are not cached (yet)."""
        if self._slots is None:  # a pickled copy whose file is gone
            return None
        pixels = np.empty((3, *self._sizes_hw[i]), np.uint8)
        return pixels if self._slots.read(i, pixels) else None

    def put(self, i: int, pixels: np.ndarray) -> None:
        if self._slots is not None:
            self._slots.write(i, pixels)


class CocoImages(Dataset[tuple[torch.Tensor, dict[str, Any]]]):
    """Dataset of the images and targets of a split, resized once and cached in memory or in a store that trials share.

    Item i is (image, target). The image is float32 (3, H, W) in 0..1, RGB. The target has ``boxes`` float32 (N, 4) xyxy
    in resized pixels, ``labels`` int64 (N,), ``iscrowd`` int64 (N,), ``image_id`` int, ``scale_xy`` (sx, sy), the
    factors from resized to original pixels (of an image that is not augmented), ``index`` i, and ``is_flipped``. N may
    be 0. Crowd boxes are left out unless `keep_crowd`.

    Args:
        hflip: flip horizontally with probability 0.5, determined by (seed, epoch, i) alone; see `set_epoch`.
        augmentation: scale and colour jitter, determined likewise; the cache holds the image before it.
        cache_bytes: bound of the pixels cached in memory; the first images that fit are kept; 0: keep none.
        store: disk cache to use instead of memory.
    """

    def __init__(
        self,
        split: Split,
        *,
        image_size_px: int,
        max_size_px: int,
        hflip: bool,
        augmentation: Augmentation = PRESETS["none"],
        cache_bytes: int = CACHE_BYTES,
        keep_crowd: bool = False,
        store: Store | None = None,
    ) -> None:
        self.split = split
        self.image_size_px = image_size_px
        self.max_size_px = max_size_px
        self.hflip = hflip
        self.augmentation = augmentation
        self.keep_crowd = keep_crowd
        self.sizes_hw = [self._size_hw(entry) for entry in split.images]
        slots = None
        if store is not None:
            sizes = [3 * height * width for height, width in self.sizes_hw]
            slots = store.open("pixels", {"images": self.content_key()}, sizes, partly=True)
        self._kept: _Pixels | _StoredPixels
        if slots is not None:
            self._kept = _StoredPixels(slots, self.sizes_hw)
        else:
            self._kept = _Pixels(self.sizes_hw, cache_bytes)
        self.seed_and_epoch = (0, 0)

    def set_epoch(self, epoch: int, seed: int) -> None:
        """Choose flips and jitter of an epoch; called by `loader`. Code that indexes the dataset must call it too."""
        self.seed_and_epoch = (seed, epoch)

    def content_key(self) -> str:
        """Return a key for the pixels of all items: file contents, sizes, and the versions that decode and resize."""
        digest = hashlib.blake2b(f"{PIL.__version__} bilinear RGB".encode(), digest_size=16)
        for entry, size_hw in zip(self.split.images, self.sizes_hw, strict=True):
            try:
                stat = entry.path.stat()
                stamp = (stat.st_size, stat.st_mtime_ns)  # too, as it may have changed since the check
            except OSError:  # reading it later reports the fault
                stamp = (0, 0)
            how = () if entry.decoding == PLAIN else (entry.decoding,)
            digest.update(repr((entry.digest or str(entry.path), stamp, size_hw, *how)).encode())
        return digest.hexdigest()

    def _size_hw(self, entry: ImageEntry) -> tuple[int, int]:
        return resized_hw(entry.height, entry.width, self.image_size_px, self.max_size_px)

    def __len__(self) -> int:
        return len(self.split.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, dict[str, Any]]:
        entry = self.split.images[i]
        pixels = self._pixels(i)
        height, width = pixels.shape[-2:]
        scale_x, scale_y = width / entry.width, height / entry.height

        keep = [n for n, crowd in enumerate(entry.iscrowd) if self.keep_crowd or not crowd]
        x, y, w, h = torch.tensor([entry.boxes_xywh[n] for n in keep], dtype=torch.float64).reshape(-1, 4).unbind(1)
        boxes = torch.stack([x * scale_x, y * scale_y, (x + w) * scale_x, (y + h) * scale_y], dim=1).float()
        rng = np.random.default_rng((*self.seed_and_epoch, i))
        is_flipped = bool(rng.random() < 0.5) and self.hflip
        if self.augmentation.changes_images:
            from cst_search.data.augmentation import augment  # its part of torchvision imports torch's compiler

            pixels, boxes, visible = augment(pixels, boxes, self.augmentation, rng)
            keep = [keep[n] for n in visible]
        if is_flipped:
            pixels = pixels[:, :, ::-1]
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        image = as_tensor(pixels)
        target = {
            "boxes": boxes,
            "labels": torch.tensor([entry.labels[n] for n in keep], dtype=torch.int64),
            "iscrowd": torch.tensor([entry.iscrowd[n] for n in keep], dtype=torch.int64),
            "image_id": entry.image_id,
            "scale_xy": (1 / scale_x, 1 / scale_y),
            "index": i,
            "is_flipped": is_flipped,
        }
        return image, target

    def _pixels(self, i: int) -> np.ndarray:
        """Return the resized pixels of image i, read-only uint8 (3, H, W)."""
        pixels = self._kept.get(i)
        if pixels is None:
            pixels = _read_resized(self.split.images[i], self.sizes_hw[i])
            self._kept.put(i, pixels)
        return pixels


def _read_resized(entry: ImageEntry, size_hw: tuple[int, int]) -> np.ndarray:
    return resized(decode(entry.path, (entry.width, entry.height), entry.decoding), size_hw)


def resized(image: Image.Image, size_hw: tuple[int, int]) -> np.ndarray:
    """Return the pixels of an image in RGB at a size, uint8 (3, H, W)."""
    height, width = size_hw
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)  # Pillow's filters are antialiased
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    """Return pixels (3, H, W) as float32 in 0..1."""
    # numpy, which takes 1 ms where torch takes 16 ms, with equal bits (1066x800, two CPU cores, torch 2.15)
    return torch.from_numpy(np.divide(pixels, np.float32(255), dtype=np.float32, order="C"))


def collate(batch: list[tuple[torch.Tensor, dict[str, Any]]]) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    """Make a batch: a list of images and a list of targets. Images differ in size; torchvision's detectors pad them."""
    images, targets = zip(*batch, strict=True)
    return list(images), list(targets)


class _Order(Sampler[int]):
    """Sampler that yields every index once, in an order determined by (seed, epoch) alone."""

    def __init__(self, n: int, seed: int, epoch: int) -> None:
        self.n, self.seed, self.epoch = n, seed, epoch

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        # the third number separates this stream from those of the flips, which have an image index there
        yield from np.random.default_rng((self.seed, self.epoch, 2**31)).permutation(self.n).tolist()


class Batches(DataLoader[tuple[torch.Tensor, dict[str, Any]]]):
    """Batches of one epoch of a dataset, each as `collate` makes it."""

    dataset: CocoImages

    def __init__(self, images: CocoImages, *, seed: int, epoch: int, **options: Any) -> None:
        super().__init__(images, collate_fn=collate, **options)
        self.seed_and_epoch = seed, epoch

    def __iter__(self) -> Any:
        # on iteration, not on construction: loaders of several epochs may share one dataset
        self.dataset.set_epoch(self.seed_and_epoch[1], self.seed_and_epoch[0])
        return super().__iter__()


def loader(
    images: CocoImages,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    epoch: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
) -> Batches:
    """Return the batches of one epoch, equal for any number of loader processes. The last one may be smaller.

    Args:
        images: dataset; (seed, epoch), both integers from 0, determine its order, flips and jitter. Loaders that share
            a dataset must not be iterated at the same time.
        workers: number of loader processes; 0: load in this process, which is fastest once the pixels are cached.
    """
    return Batches(
        images,
        seed=seed,
        epoch=epoch,
        batch_size=batch_size,
        sampler=_Order(len(images), seed, epoch) if shuffle else None,
        num_workers=workers,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(seed),  # otherwise every epoch would draw from the global generator
    )
