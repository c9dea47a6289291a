"""Imports flow downwards: a module imports its own layer or lower ones."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "unmask"
LAYERS = {
    0: "config schedules randomness nearest waiting",
    1: "vit blocks attend fused passes positions initialize masks framing views side_by_side photometry photometry_cpu "
    "randaugment erasing mixing weights boxes jitter",
    2: "data",
    3: "methods tokenizers layer_decay",
    4: "run checkpoint parallel rendezvous flops optim budget console meter signals recompute compilation allocator",
    5: "train step",
    6: "evaluate show analyze report",
    7: "cli arguments verbs recipes pretrain options stages demo models pictures analyses forecast compare predict "
    "borrow export embed embedder feature_files report",
    8: "testing __init__ __main__",  # the public names and the conformance suite see everything
}
LAYER = {module: layer for layer, modules in LAYERS.items() for module in modules.split()}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """The full names of all that a file imports, inside functions too."""
    parts, found = ("unmask", *path.relative_to(PACKAGE).with_suffix("").parts), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*parts[: -node.level], *([node.module] if node.module else [])] if node.level else [node.module]
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_no_higher_layer(path):
    module = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert module in LAYER, f"unmask/{module}: give it a layer in tests/test_layers.py"
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("unmask.")} - {"__version__"}
    higher = sorted(name for name in ours if LAYER.get(name, 8) > LAYER[module])
    assert not higher, f"unmask/{module} (layer {LAYER[module]}) imports {higher} from above"


@pytest.mark.parametrize("module", LAYERS[0].split())
def test_layer_0_starts_without_torch(module):
    assert not any(name.split(".")[0] in {"torch", "torchvision"} for name in imports(PACKAGE / f"{module}.py"))


def test_the_loop_names_no_method():
    methods = {name for name in imports(PACKAGE / "train.py") if name.startswith("unmask.methods.")}
    assert all(name.startswith("unmask.methods.base.") for name in methods), methods
