"""What frozen features are worth: k-NN and linear probes, with intervals."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .classified import Classified, classify
    from .features import Features, extract, pixels
    from .knn import KNN, FittedKNN
    from .labels import renumbered
    from .metrics import balanced, bootstrap, top1
    from .online import Online
    from .probe import FittedLinear, LinearProbe
    from .run import EvalModel, evaluate
    from .tables import table

__all__ = [
    "KNN",
    "Classified",
    "EvalModel",
    "Features",
    "FittedKNN",
    "FittedLinear",
    "LinearProbe",
    "Online",
    "balanced",
    "bootstrap",
    "classify",
    "evaluate",
    "extract",
    "pixels",
    "renumbered",
    "table",
    "top1",
]

_HOME = {
    "classified": ("Classified", "classify"),
    "features": ("Features", "extract", "pixels"),
    "knn": ("KNN", "FittedKNN"),
    "labels": ("renumbered",),
    "metrics": ("balanced", "bootstrap", "top1"),
    "online": ("Online",),
    "probe": ("FittedLinear", "LinearProbe"),
    "run": ("EvalModel", "evaluate"),
    "tables": ("table",),
}


def __getattr__(name: str) -> Any:
    """Import on first use: scikit-learn takes two seconds, and features alone do without it."""
    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
