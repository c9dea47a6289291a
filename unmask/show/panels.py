"""Which logged numbers a picture of a run shows side by side, and what it calls them."""

from collections.abc import Collection, Sequence
from typing import Any

PLAIN = {"step", "epoch", "images", "loss", "grad_norm", "lr", "img/s", "data_wait", "outside_step", "memory_gb"}
"""what every method logs; the rest is a method's own health, drawn below the loss"""
TOGETHER = {
    "hidden tokens right": ("mlm_acc", "constant_acc"),
    "bound, nats/dim": ("health/elbo_hard", "health/elbo_relaxed", "elbo"),
    "codes in use": ("health/usage", "usage"),
    "codes in effect": ("health/token_perplexity", "health/perplexity", "perplexity"),
    "nats a cell": ("health/kl", "health/cell_entropy", "kl", "cell_entropy"),
    "PSNR, dB": ("health/psnr",),
    "SSIM": ("health/ssim",),
    "teacher's entropy": ("entropy", "patch_entropy"),
    "KL to uniform": ("kl_uniform", "patch_kl_uniform"),
    "prototypes in use": ("usage", "patch_usage"),
    "views agree": ("agreement", "patch_agreement"),
    "length of the center": ("center_norm", "patch_center_norm"),
    "RankMe": tuple(f"labelfree/rankme/{pool}{who}" for who in ("", "/student") for pool in ("cls", "mean")),
    "parts of the loss": ("loss_cls", "loss_patch", "loss_koleo"),
}
"""numbers that are read side by side: `health/` on held-out images, `patch_` of patches, bare ones on the batch"""
WORDS = {
    "mlm_acc": "predicted",
    "constant_acc": "most frequent token everywhere",
    "elbo_hard": "argmax tokens",
    "elbo_relaxed": "relaxed",
    "elbo": "relaxed",
    "kl": "KL",
    "token_perplexity": "argmax tokens",
    "perplexity": "mean posterior",
    "loss_cls": "[CLS]",
    "loss_patch": "patches",
    "loss_koleo": "KoLeo",
}
"""how a legend calls them"""
PERCENT = ("accuracy", "hidden tokens right", "codes in use", "prototypes in use", "views agree")
"""panels of fractions"""

Panel = tuple[str, list[str]]
"""a label and the names of the numbers drawn in it"""


def panels(lines: Sequence[dict[str, Any]]) -> list[Panel]:
    """Panels of a run's log, from the top of the picture down."""
    logged = {name for line in lines for name, value in line.items() if value is not None} - PLAIN
    evals = sorted(name for name in logged if name.startswith("eval/"))
    found: list[Panel] = [("loss", ["loss"]), ("accuracy", evals), ("learning rate", ["lr"])]
    left = logged - set(evals)
    # a name may stand in two groups (`usage` of codes, of prototypes): the one of which more is there takes it
    for label, names in sorted(TOGETHER.items(), key=lambda group: -len(logged.intersection(group[1]))):
        if here := [name for name in names if name in left]:
            found.append((label, here))
            left -= set(here)
    order = ["loss", "accuracy", "learning rate", *TOGETHER]
    return sorted(found, key=lambda panel: order.index(panel[0])) + [(name, [name]) for name in sorted(left)]


def legend(name: str, among: Collection[str] = ()) -> str:
    """What a number is called beside others of its panel."""
    if name.startswith(("eval/", "labelfree/")):
        return name.partition("/")[2].replace("/", ", ").replace("knn", "k-NN")
    bare = name.removeprefix("health/")
    if bare in ("mlm_acc", "constant_acc") or bare.startswith("loss_"):
        return WORDS[bare]
    if name.startswith("patch_"):
        return "patches"
    if bare in ("entropy", "kl_uniform", "agreement", "center_norm") or f"patch_{name}" in among:
        return "[CLS]"
    return WORDS.get(bare, bare.replace("_", " ")) + (", held out" if name.startswith("health/") else ", batch")
