"""What the tests of the report share: a comparison with made numbers, all analyses and pictures in it."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from unmask.report.comparison import Comparison


def estimate(values, half=0.01):
    """Values with an interval of one width around them, as analyses write it."""
    values = np.asarray(values, float)
    return {"value": values.tolist(), "low": (values - half).tolist(), "high": (values + half).tolist()}


def method(name, kind=None, **changes):
    vit = {"width": 32, "depth": 2, "heads": 2, "patch": 4, "image_size": 16}
    return {
        "name": name, "recipe": kind or name, "kind": kind or name, "run": f"runs/{name}", "step": 40,
        "images_seen": 2560, "epochs": 2.5, "seconds": 120.0, "images_per_second": 80.0, "gflop": None,
        "parameters": 120_000, "vit": vit, "own_pool": "mean", "tokenizer": None, "notes": [],
    } | changes  # fmt: skip


def about(*kinds):
    """A comparison of methods that are named by their kinds, in memory."""
    return Comparison(Path(), {"methods": [method(kind) for kind in kinds]})


def row(model, protocol, top1, features="mean", **more):
    low, high = top1 - 0.02, top1 + 0.02
    return {
        "model": model, "protocol": protocol, "features": features, "layer": "last",
        "k": 20 if protocol == "knn" else None, "top1": top1, "balanced": top1, "ci_low": low, "ci_high": high,
        "n_train": 500, "n_test": 200,
    } | more  # fmt: skip


def log(name, supervised=False):
    lines = []
    for step in range(1, 21):
        line = {"step": step, "images": 64 * step, "seconds": 2.0 * step, "loss": 3 / step + 1}
        if step % 10 == 0:
            scores = {"eval/top1": 0.3} if supervised else {"eval/knn/mean": 0.2 + step / 100, "eval/linear/mean": 0.3}
            lines.append({**{k: line[k] for k in ("step", "images", "seconds")}, **scores})
        lines.append(line)
    return lines


def found(names=("mae", "beit", "ibot")):
    """Numbers of all analyses, in the form that they are written."""
    blocks = [f"{name}/{i}" for name in names for i in (1, 2)]
    layers = {name: {"images": 9, "layers": estimate([0.2, 0.1]), "heads": estimate([[0.1, 0.3], [0.1, 0.1]])}
              for name in names}  # fmt: skip
    spectrum = {"error_over_image": estimate(np.linspace(0.1, 1.2, 12)), "loss_share": estimate(np.linspace(1, 0, 12)),
                "share": {"above 4 cycles": 0.6, "above 8 cycles": 0.2}}  # fmt: skip
    parts = ("r2_color", "r2_gradient_energy", "flips_low_pass", "flips_hue")
    target = {"tokens_used": 9, "nmi": 0.2, "nmi_by_chance": 0.1} | {part: estimate(0.4) for part in parts}
    around = {"loss": 1.0, "sharpness": {"0.01": estimate(0.1), "0.05": estimate(0.2)}, "hessian_trace": estimate(9.0)}
    two = {"jitter": estimate([0.1, 0.2]), "target_variance": estimate([0.1, 0.2])}
    return {
        "attention-distance": layers,
        "attention-nmi": layers,
        "amplitude": {
            name: {"images": 9, "frequency": [0, 0.5], "blocks": estimate([[0, -1], [0, -2]]),
                   "drop": estimate([-1, -2])} for name in names
        },
        "bands": {
            name: {"images": 9, "cuts": [2.0, 4.0], "bands": [0.1, 0.3], "area": {"low": 0.5, "high": 0.5},
                   "relative": {part: estimate([0.4, 0.6]) for part in ("low", "high", "noise")}} for name in names
        },
        "error-spectrum": {"mae": {"images": 9, "pixels": spectrum, "normalized": spectrum}},
        "range": {
            name: {"images": 9, "target": "pixels", "radii": [0, 1, 2], "loss": estimate([2, 1.5, 1]),
                   "gain": estimate([0, 0.6, 1]), "R_50": 0.9, "R_90": 1.8} for name in names
        },
        "targets": {name: {"images": 9, **target} for name in names},
        "cka": {"images": 9, "blocks": blocks, "cka": np.eye(len(blocks)).tolist()},
        "teacher-student": {
            "ibot": {"images": 9, "steps": [10, 20], "student": estimate([0.2, 0.3]), "teacher": estimate([0.2, 0.35]),
                     "gap": estimate([0, 0.05]), "not_told_apart": [10]}
        },
        "averaging": {
            "ibot": {"images": 9, "steps": 500, "from_step": 20, "momenta": [0.9, 0.99],
                     "accuracy": {"student": estimate(0.2), "EMA 0.9": estimate(0.3), "mean of all": estimate(0.25),
                                  "ensemble": estimate(0.28), "run's teacher": estimate(0.31)},
                     "kept_variance": {"0.9": 0.2, "0.99": 0.1}, "predicted": {"0.9": 0.05, "0.99": 0.005}}
        },
        "target-noise": {
            "ibot": {"images": 9, "momentum": 0.9, "distances": [1, 10], "student": two, "teacher": two, "ratio": two,
                     "predicted_ratio": [0.01, 0.03]}
        },
        "flatness": {"ibot": {"images": 9, "line": {"alpha": [0, 1], "loss": [1, 2]}, "student": around,
                              "teacher": around}},
        "collapse": {
            "ibot": {"images": 9, "entropy": estimate(1.0), "kl_uniform": 0.5, "usage": 0.5, "information": 3.0,
                     "agreement": estimate(0.7), "ln_K": 4.5, "center_norm": 1.0}
        },
    }  # fmt: skip


def write_folder(folder, *, first="mae", **changes):
    """Write a comparison of four methods, whole; `first` names the first of them."""
    for name in ("analyses", "pictures"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    analyses, pictures = [], []
    for what, numbers in found((first, "beit", "ibot")).items():
        file = f"analyses/{what}.json"
        (folder / file).write_text(json.dumps({"analysis": what, "settings": {"count": 9}, "found": numbers}))
        analyses.append({"what": what, "models": list(numbers), "numbers": file, "figure": None})
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    for i, (name, what) in enumerate([("ibot", "attention"), (first, "reconstruction"), (first, "attention")]):
        Image.fromarray(noise).save(folder / f"pictures/{i}.png")
        pictures.append({"method": name, "what": what, "file": f"pictures/{i}.png"})
    names = (first, "beit", "ibot", "supervised")
    rows = [row(name, protocol, 0.3 + i / 50) for i, name in enumerate(names) for protocol in ("knn", "linear")]
    rows += [row(first, "linear", 0.2, n_train=50, shots="10%", seeds=[0, 1], deviation=0.01)]
    rows += [row("untrained:mae", "linear", 0.1), row("pixels", "linear", 0.15, features="pixels")]
    said = {
        "format": 1, "version": "0.1.0", "command": "unmask compare photos --budget 2m --out DIR", "data": "photos",
        "test": None, "images": 500, "test_images": 200, "classes": 10, "budget": "2m", "seed": 0,
        "environment": {"torch": "2"}, "created": "2026-01-02T03:04:05", "facts": {}, "analyses": analyses,
        "methods": [method(first, "mae"), method("beit", tokenizer={"run": "t", "seconds": 30.0, "images_seen": 640}),
                    method("ibot"), method("supervised")],
        "rows": rows, "pictures": pictures, "notes": ["a note"],
        "differences": [{"model": "beit", "protocol": "linear", "features": "mean", "layer": "last", "k": None,
                         "to": first, "to_features": "mean", "difference": 0.02, "ci_low": 0.01, "ci_high": 0.03,
                         "n_test": 200}],
        "curves": {name: log(name, name == "supervised") for name in names},
        "answer": {"best": {}, "beats": ["supervised beats pixels"], "sentence": "Use supervised: 36 % [34, 38]."},
    }  # fmt: skip
    (folder / "compare.json").write_text(json.dumps(said | changes))
    return folder
