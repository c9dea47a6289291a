"""What a backbone is worth: k-NN, linear and attentive probes, fine-tuning, with intervals."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attentive import AttentiveProbe, FittedAttentive
    from .classified import Classified, classify
    from .features import Features, extract, pixels
    from .knn import KNN, FittedKNN
    from .labelfree import LabelFree
    from .labels import renumbered
    from .metrics import balanced, bootstrap, top1
    from .online import Online
    from .probe import FittedLinear, LinearProbe
    from .run import Assessment, assess, evaluate
    from .tables import difference_table, table
    from .take import EvalModel

__all__ = [
    "KNN",
    "Assessment",
    "AttentiveProbe",
    "Classified",
    "EvalModel",
    "Features",
    "FittedAttentive",
    "FittedKNN",
    "FittedLinear",
    "LabelFree",
    "LinearProbe",
    "Online",
    "assess",
    "balanced",
    "bootstrap",
    "classify",
    "difference_table",
    "evaluate",
    "extract",
    "pixels",
    "renumbered",
    "table",
    "top1",
]

_HOME = {
    "attentive": ("AttentiveProbe", "FittedAttentive"),
    "classified": ("Classified", "classify"),
    "features": ("Features", "extract", "pixels"),
    "knn": ("KNN", "FittedKNN"),
    "labelfree": ("LabelFree",),
    "labels": ("renumbered",),
    "metrics": ("balanced", "bootstrap", "top1"),
    "online": ("Online",),
    "probe": ("FittedLinear", "LinearProbe"),
    "run": ("Assessment", "assess", "evaluate"),
    "tables": ("difference_table", "table"),
    "take": ("EvalModel",),
}


def __getattr__(name: str) -> Any:
    """Import on first use: scikit-learn takes two seconds, and features alone do without it."""
    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
