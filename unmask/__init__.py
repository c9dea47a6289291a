"""unmask: pre-train Vision Transformers on unlabelled images by masked image modelling.

`import unmask` costs nothing: each public name is imported when it is first used (PEP 562).
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import recipes, show
    from .compare import compare
    from .embed import embed
    from .embedder import Embedder
    from .export import export
    from .models import evaluate, load
    from .predict import predict
    from .pretrain import pretrain
    from .run import Run

__version__ = "0.1.0"

__all__ = [
    "Embedder",
    "Run",
    "__version__",
    "compare",
    "embed",
    "evaluate",
    "export",
    "load",
    "predict",
    "pretrain",
    "recipes",
    "show",
]

_HOME = {"Embedder": "embedder", "Run": "run", "load": "models", "recipes": "recipes", "show": "show"}
"""public name -> the module that has it, or is it"""
_VERBS = {
    "compare": "compare",
    "embed": "embed",
    "evaluate": "models",
    "export": "export",
    "predict": "predict",
    "pretrain": "pretrain",
}
"""functions that share their name with a module -> the module that has them"""


class _Verb(ModuleType):
    """A module that is called like the function of its name: docs/decisions/0003."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = self.__name__.rpartition(".")[2]
        return getattr(importlib.import_module(f".{_VERBS[name]}", __name__), name)(*args, **kwargs)


class _Package(ModuleType):
    """Python binds a module to its package right after importing it: the moment to make it callable."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _VERBS and isinstance(value, ModuleType):
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_HOME[name]}", __name__)
    return module if _HOME[name] == name else getattr(module, name)


def __dir__() -> list[str]:
    return [*__all__]
