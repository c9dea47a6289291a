"""BEiT with a tokenizer that has learnt nothing: what a trained one is worth.

    python benchmarks/random_tokenizer.py DATA --out RUN --steps N --like TOKENIZER_RUN [--test DATA]

The same recipe, vocabulary, masks, steps and seed as `unmask pretrain beit DATA`, but the visual token of a
patch is the nearest of K random codes to a random projection of its pixels, as in BEST-RQ (Chiu et al. 2022,
arXiv:2202.01855): P (x - m), x the patch's mapped pixels, P 32 orthonormal directions, each coordinate divided
by its deviation over 256 images, nearest by the cosine. Same colors, same token; nothing is abstract about it.

The run is a plain BEiT run, continued by the same command, and `unmask evaluate RUN` judges it. Its checkpoints
hold a stand-in where another run's tokenizer is, and its config names `random-projection` as the tokenizer's
fingerprint: whoever trains on with `unmask pretrain` is refused, as the projection lives only here.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unmask import tokenizers
from unmask.config import RunConfig
from unmask.methods.beit import BEiT, BEiTConfig
from unmask.methods.codec import CodecConfig, build_codec
from unmask.methods.codec_health import frequencies, perplexity, usage
from unmask.methods.pixels import map_pixels
from unmask.options import Options
from unmask.pretrain import carry_out, planned
from unmask.randomness import fold
from unmask.stages import RECORD, held_out_images

NAME = "random-projection"
DIM = 32
"""of the projection: the tokens of photographs are then as many in effect as a dVAE's of 512"""


class RandomProjection(nn.Module):
    """A Tokenizer of fixed random numbers; its state dict is the stand-in's, so that a plain run can be read."""

    def __init__(self, stand_in: nn.Module, config: CodecConfig, images: Float[Tensor, "B C H W"], seed: int):
        super().__init__()
        for name, part in stand_in.named_children():
            self.add_module(name, part)
        self.vocab, self.stride, self.channels = config.vocab, config.stride, config.channels
        random = torch.Generator().manual_seed(fold(seed, NAME))
        pixels = config.channels * config.stride**2
        square = torch.linalg.qr(torch.randn(pixels, pixels, generator=random)).Q
        codes = torch.randn(config.vocab, min(DIM, pixels), generator=random)
        self.register_buffer("directions", square[:, :DIM].contiguous(), persistent=False)
        self.register_buffer("codes", F.normalize(codes, dim=-1), persistent=False)
        coordinates = self.patches(images) @ self.directions
        self.register_buffer("mean", coordinates.mean((0, 1)), persistent=False)
        self.register_buffer("std", coordinates.std((0, 1)), persistent=False)

    def patches(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N P"]:
        """The mapped pixels of each cell, in raster order."""
        return F.unfold(map_pixels(image), self.stride, stride=self.stride).transpose(1, 2)

    def encode(self, image: Float[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        """The nearest code of each cell."""
        coordinates = (self.patches(image) @ self.directions - self.mean) / self.std
        return (F.normalize(coordinates, dim=-1) @ self.codes.T).argmax(-1)

    def decode(self, ids: Int[Tensor, "B N"], grid: tuple[int, int]) -> Float[Tensor, "B C H W"]:
        raise TypeError("a random projection has no decoder")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True, help="run directory; again: continue")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--like", required=True, help="a tokenizer (a dvae run) whose vocabulary and stride to take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int)
    for name in ("--test", "--eval-every", "--save-every"):
        parser.add_argument(name, help="as for unmask pretrain")
    asked = vars(parser.parse_args())
    data, like = asked.pop("data"), asked.pop("like")
    stand_in = asked["out"].with_name(f"{asked['out'].name}-stand-in")
    if not (stand_in / tokenizers.FILE).exists():
        config = tokenizers.load(like).config
        torch.manual_seed(fold(asked["seed"], NAME))
        small = dataclasses.replace(config, kind="dalle", likelihood="laplace", width=4, blocks=1, code_width=4)
        stand_in.mkdir(parents=True, exist_ok=True)
        tokenizers.save(build_codec(small), stand_in)

    def name_it(config: RunConfig) -> RunConfig:
        assert isinstance(config.method, BEiTConfig)
        return dataclasses.replace(config, method=dataclasses.replace(config.method, tokenizer_hash=NAME))

    # a device batch that is found by a forward pass would be found with the stand-in, which is not what is asked for
    options = Options(tokenizer=str(stand_in), device_batch=64, **asked)
    with planned("beit", data, options, name_it) as plans:
        (plan,) = plans
        method, images = plan.method, held_out_images(plan.source, plan.config)
        assert isinstance(method, BEiT)
        projection = RandomProjection(method.tokenizer, plan.config.method.tokenizer, images, plan.config.seed)
        method.tokenizer = projection.requires_grad_(False).eval().to(plan.world.device)
        method.verified = True
        run = carry_out(plan)
    ids = projection.cpu().encode(images)
    report = {"usage": usage(ids, projection.vocab), "token_perplexity": perplexity(frequencies(ids, projection.vocab))}
    record = {"from": NAME, "fingerprint": NAME, "stride": projection.stride, "vocab": projection.vocab}
    record["health"] = {name: float(value) for name, value in report.items()}
    (run.path / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"run": str(run.path), "step": run.latest(), **record}))


if __name__ == "__main__":
    main()
