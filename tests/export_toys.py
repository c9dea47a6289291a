"""What the tests of export share: networks with every tensor at random, and a process that knows no unmask."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unmask.methods.mae import MAEConfig
from unmask.views import View
from unmask.vit import ViTConfig
from unmask.weights.loaded import Loaded

BASE: dict[str, Any] = {"image_size": 32, "patch": 8, "width": 32, "depth": 2, "heads": 2}
BEIT: dict[str, Any] = {"pos_embed": "none", "qkv_bias": "qv", "layer_scale": 0.1, "init": "beit"}
CLASSES = ("cat", "dog", "eel")


def weights(seed: int = 0, **config: Any) -> Loaded:
    """A ViT of these differences from BASE; zeros and ones would hide a mistake."""
    vit = ViTConfig(**(BASE | config))
    blank = Loaded("a toy", vit, {}, mean=(0.5,) * vit.channels, std=(0.25,) * vit.channels)
    return _filled(blank, torch.Generator().manual_seed(seed))


def _filled(blank: Loaded, generator: torch.Generator) -> Loaded:
    from dataclasses import replace

    from unmask.vit import ViT

    state = {
        name: value if name == "pos_embed" and blank.vit.pos_embed == "sincos" else noise(value, generator)
        for name, value in ViT(blank.vit).state_dict().items()
    }
    return replace(blank, state=state, classes=CLASSES[: blank.vit.classes])


def noise(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(value.shape, generator=generator) * 0.1


def mae() -> tuple[Any, Loaded]:
    """An MAE with its decoder: the method, and its weights."""
    from dataclasses import replace

    config = MAEConfig(
        vit=ViTConfig(**BASE, pos_embed="sincos"), views=(View(32, scale=(0.2, 1.0)),),
        decoder_width=16, decoder_depth=1, decoder_heads=2,
    )  # fmt: skip
    method, generator = config.build().eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in method.named_parameters():
            if not name.endswith("pos_embed"):
                value.copy_(noise(value, generator))
    beside = {f"decoder.{name}": value for name, value in method.decoder.state_dict().items()}
    loaded = weights(pos_embed="sincos")
    return method, replace(loaded, state=method.encoder.state_dict(), beside=beside, decoder_heads=2)


def image(loaded: Loaded, batch: int = 2, size: tuple[int, int] | None = None) -> torch.Tensor:
    shape = (batch, loaded.vit.channels, *(size or loaded.vit.image_hw))
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def expected(loaded: Loaded, **at: Any) -> dict[str, np.ndarray]:
    """The input, all tokens after the final norm, and the scores of a head."""
    vit, x = loaded.build(), image(loaded, **at)
    tokens = vit(x)
    found = {"image": x, "tokens": torch.cat([tokens.prefix, tokens.patches], dim=1)}
    return {k: v.numpy() for k, v in (found | ({"logits": vit.logits(x)} if loaded.vit.classes else {})).items()}


def elsewhere(program: str, *words: Any) -> dict[str, Any]:
    """Run a program in a fresh process that never imports unmask; the last line it prints is JSON."""
    code = f"import json, sys\n{program}\nassert 'unmask' not in sys.modules\nprint(json.dumps(result))"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=Path(sys.executable).parent, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
