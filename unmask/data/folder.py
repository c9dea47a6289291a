"""Folders of images: flat, one sub-folder a class, or nested as they please.

Paths are bytes here: a file name need not be UTF-8.
"""

# pathlib has no paths of bytes

import os
from pathlib import Path
from typing import Literal

import numpy as np

from .record import IMAGE_SUFFIXES, Names, Record, label_of, read_range, readable


class Folder:
    """Image files below one folder, sorted by path.

    Hidden files and folders (a leading dot) are passed over, links are followed once. Labels, with
    "auto": when all images lie exactly one level down, in at least two sub-folders, these are the
    classes, in sorted order. With "folder": the first sub-folder is the class at any depth.

    Args:
        name: the folder.
        labels: "auto", "folder" or "none".
        files: these images, without labels, instead of all in the folder (`name` is only a name then).
    Raises:
        ValueError: no image in the folder, or "folder" where an image lies in no sub-folder.
    """

    def __init__(
        self, name: str, *, labels: Literal["auto", "folder", "none"] = "auto", files: list[str] | None = None
    ):
        self.name, self.root = name, b"" if files else os.fsencode(name)
        names = walk(self.root) if files is None else [os.fsencode(file) for file in files]
        if not names:
            raise ValueError(f"{name}: no images; {_what_is_there(Path(name))}")
        self.names = Names.of(names)
        self.classes: list[str] | None = None
        self.labels: np.ndarray | None = None
        if labels == "none" or files is not None:
            return
        tops = [path.split(b"/", 1)[0] if b"/" in path else None for path in names]
        classes = sorted({top for top in tops if top is not None})
        one_down = all(path.count(b"/") == 1 for path in names)
        if labels == "folder" and None in tops:
            flat = readable(names[tops.index(None)])
            raise ValueError(f"{name}: labels are to come from sub-folders, but {flat} lies in none; use --labels none")
        if labels == "folder" or (one_down and len(classes) >= 2):
            number = {top: i for i, top in enumerate(classes)}
            self.classes = [readable(top) for top in classes]
            self.labels = np.array([number[top] for top in tops if top is not None], np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Record:
        name = self.names[i]
        key = readable(name)
        return Record(read_range(os.path.join(self.root, name), 0, None, key), label_of(self.labels, i), key)


def walk(root: bytes) -> list[bytes]:
    """List the image files below a folder as sorted relative paths."""
    found: list[bytes] = []
    seen: set[tuple[int, int]] = set()  # a link may lead back up
    suffixes = {b"." + suffix.encode() for suffix in IMAGE_SUFFIXES}
    todo = [b""]
    while todo:
        below = todo.pop()
        status = os.stat(os.path.join(root, below))
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(os.path.join(root, below)) as entries:
            for entry in entries:
                if entry.name.startswith(b"."):
                    continue
                path = below + b"/" + entry.name if below else entry.name
                if entry.is_dir():
                    todo.append(path)
                elif os.path.splitext(entry.name)[1].lower() in suffixes and entry.is_file():
                    found.append(path)
    return sorted(found)


def _what_is_there(root: Path) -> str:
    """The cure for a folder without images, from what it does hold."""
    for suffix, kind in ((".tar", "shards"), (".parquet", "files")):
        if any(root.glob(f"*{suffix}")):
            return f"for its {suffix} {kind} write '{root}/*{suffix}'"
    if (root / "dataset_info.json").exists() or (root / "dataset_dict.json").exists():
        return f"it is a saved Hugging Face data set: write hf:{root}"
    return f"looked for {', '.join(sorted(IMAGE_SUFFIXES))} at any depth"
