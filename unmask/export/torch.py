"""torch.export: one file, model.pt2, that PyTorch loads and runs without this package."""

from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from ..weights.loaded import Loaded
from .graph import TOLERANCE, Graph, difference, size_varies
from .subject import Written

FILE = "model.pt2"


def write(weights: Loaded, folder: Path) -> Written:
    """Trace the network, write the program, read it back and compare.

    Raises:
        RuntimeError: the program's outputs differ from the network's.
    """
    graph, file = Graph(weights.build()), folder / FILE
    torch.export.save(trace(graph), file)
    worst = difference(graph, torch.export.load(file).module())
    if worst > TOLERANCE:
        raise RuntimeError(f"the program's outputs differ from the network's by {worst:.1e} of the largest one")
    loading = (
        "import torch\n\n"
        f'model = torch.export.load("FOLDER/{FILE}").module()\n'
        f"{', '.join(graph.names)} = model(images)  # images [B {weights.vit.channels} h w], prepared as below"
    )
    return Written(loading, (sizes(graph),))


def trace(graph: Graph) -> ExportedProgram:
    """Follow the graph once, with the batch and, where it may be, the sides of the image left open."""
    config = graph.vit.config
    dims = {0: Dim("batch", min=1, max=65536)}
    (h, w), (ph, pw) = config.image_hw, config.patch_hw
    if size_varies(config):
        dims |= {2: ph * Dim("rows", min=1, max=4096), 3: pw * Dim("columns", min=1, max=4096)}
        h, w = max(h, 2 * ph), max(w, 2 * pw) + pw  # one patch, or a square, would be taken for a rule
    image = torch.zeros(2, config.channels, h, w)
    with torch.no_grad():
        return torch.export.export(graph, (image,), dynamic_shapes={"image": dims}, strict=False)


def sizes(graph: Graph) -> str:
    """Say which images the graph takes."""
    config = graph.vit.config
    (h, w), (ph, pw) = config.image_hw, config.patch_hw
    if not size_varies(config):
        return f"Any batch; images of {h} x {w} pixels only, as the positions are of that grid."
    return f"Any batch; any image whose height divides by {ph} and width by {pw}, with two patches a side at least."
