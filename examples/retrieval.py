"""Find the images most like some others: unmask embeds, scikit-learn finds neighbors.

    python examples/retrieval.py MODEL GALLERY QUERIES [features.parquet]

Prints a JSON line for each query with its nearest images in GALLERY and their cosine similarities. For
millions of images put faiss.IndexFlatIP, or an approximate index, in place of NearestNeighbors.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from sklearn.neighbors import NearestNeighbors

import unmask

NEIGHBORS = 5


def features(model: str, data: str, file: Path) -> tuple[list[str], np.ndarray]:
    """Embed DATA into a file (a second call finds it there); keys, and features of length one."""
    made = unmask.embed(model, data, file)
    table = pq.read_table(made.file, columns=["key", "mean"])
    values = table["mean"].combine_chunks().flatten().to_numpy().reshape(made.n, made.dim)
    return table["key"].to_pylist(), values / np.linalg.norm(values, axis=1, keepdims=True)


def main(model: str, gallery: str, queries: str, file: str = "gallery.parquet") -> None:
    known, bank = features(model, gallery, Path(file))
    asked, wanted = features(model, queries, Path(file).with_suffix(".queries.parquet"))
    index = NearestNeighbors(n_neighbors=min(NEIGHBORS, len(known)), metric="cosine").fit(bank)
    distances, places = index.kneighbors(wanted)
    for key, row, far in zip(asked, places, distances, strict=True):
        near = [{"key": known[i], "similarity": round(1 - float(d), 4)} for i, d in zip(row, far, strict=True)]
        print(json.dumps({"query": key, "nearest": near}))


if __name__ == "__main__":
    main(*sys.argv[1:])
