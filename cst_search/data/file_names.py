"""Find the image file that an annotation file means by a name."""

from __future__ import annotations

import os
import stat


def locate(root: str, file_name: str, real_parents: dict[str, str]) -> tuple[str, tuple[int, int], str | None]:
    """Resolve the path of an image file without opening it.

    Args:
        root: real path of the image folder.
        file_name: path relative to it; sub-folders are allowed.
        real_parents: cache of resolved folders between calls, because resolving every link of every file is slow.

    Returns:
        The absolute path with all links resolved, its (size in bytes, mtime in ns), and the kind of fault or None.
    """
    inside = root.rstrip(os.sep) + os.sep
    path = os.path.join(root, file_name)
    try:
        parent, base = os.path.split(path)
        if parent not in real_parents:
            real_parents[parent] = os.path.realpath(parent)
        path = os.path.join(real_parents[parent], base)
        if base in ("", ".", "..") or not path.startswith(inside):
            return path, (0, 0), "path-outside"
        if os.path.islink(path):
            path = os.path.realpath(path)
            if not path.startswith(inside):
                return path, (0, 0), "path-outside"
        info = os.stat(path)
    except (OSError, ValueError):  # ValueError: not a valid file name
        return path, (0, 0), "image-missing"
    if not stat.S_ISREG(info.st_mode):
        return path, (0, 0), "image-missing"
    return path, (info.st_size, info.st_mtime_ns), None
