"""Hugging Face data sets: a name on the hub, or a folder written by `save_to_disk`."""

from pathlib import Path

import numpy as np

from ..nearest import unknown
from .index import number_words
from .record import BadImage, Record, label_of, read_range


class Hub:
    """A data set of the `datasets` library: Arrow files, memory-mapped.

    Args:
        place: NAME or FOLDER, and `:SPLIT` behind it for another split than "train".
    Raises:
        ValueError: `datasets` is missing, the name, split or image column unknown.
    """

    def __init__(self, place: str):
        self.name = f"hf:{place}"
        table, image = _open(place)
        import datasets

        # this column alone: reading a row would decode every other image in it
        self.table = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        self.image = image
        self.labels: np.ndarray | None = None
        self.classes: list[str] | None = None
        if "label" in table.column_names:
            words = [None if word is None else str(word).encode() for word in table["label"]]
            self.labels, spelled = number_words(words)
            self.classes = getattr(table.features["label"], "names", None) or spelled

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: int) -> Record:
        cell = self.table[int(i)][self.image] or {}
        data, path = cell.get("bytes"), cell.get("path")
        key = path or f"{self.name}#{i}"
        if data is None:
            if path is None:
                raise BadImage(key, "the row holds no image")
            data = read_range(path, 0, None, key)
        return Record(data, label_of(self.labels, i), key)


def _open(place: str):
    try:
        import datasets
    except ImportError:
        raise ValueError(f"hf:{place}: needs the datasets library; pip install 'unmask[hub]'") from None
    # a folder may have a colon in its name, a name on the hub has none
    path, split = (place, "") if Path(place).exists() else (place.partition(":")[::2])
    try:
        if Path(path).is_dir() and not _is_saved(Path(path)):
            raise ValueError("not a folder written by save_to_disk (no dataset_info.json); for images drop the hf:")
        if Path(path).is_dir():
            table = datasets.load_from_disk(path)
            if isinstance(table, datasets.DatasetDict):
                if (split or "train") not in table:
                    raise ValueError(unknown("split", split or "train", map(str, table)))
                table = table[split or "train"]
        else:
            table = datasets.load_dataset(path, split=split or "train")
    except Exception as error:  # the library raises a dozen kinds, network failures among them
        why = str(error).partition("\n")[0]
        raise ValueError(f"hf:{place}: cannot be opened: {why}; give hf:NAME[:SPLIT] or hf:FOLDER") from error
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and {"bytes", "path"} <= set(feature)):
            return table, name
    columns = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in table.features.items())
    raise ValueError(f"hf:{place}: no image column; its columns are {columns}")


def _is_saved(folder: Path) -> bool:
    return (folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists()
