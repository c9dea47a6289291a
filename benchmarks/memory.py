"""Memory and time of a training step by formula: prints the tables of docs/scaling.md.

    python benchmarks/memory.py

tests/test_scaling.py holds the formulas against what one process and small worlds really keep.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

GPU_BYTES, FLOPS, LINK = 141e9, 0.5 * 790e12, 360e9
"""an H200: memory; half of its dense bf16 rate; what NCCL gets of NVLink's 450 GB/s a direction"""
SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "H": (1280, 32, 16)}


@dataclass(frozen=True)
class Stack:
    """Blocks of one width, and the tokens of one image that go through them, summed over its crops."""

    width: int
    depth: int
    heads: int
    tokens: tuple[int, ...]
    """of each crop: attention is within a crop"""
    backward: bool = True
    """False: a teacher's, forward only"""

    @property
    def block(self) -> int:
        """Parameters of a block: qkv 3D^2 + 3D, projection D^2 + D, MLP 8D^2 + 5D, norms 4D."""
        return 12 * self.width**2 + 13 * self.width

    @property
    def flops(self) -> float:
        """Forward, and twice that again for the gradients of inputs and weights."""
        d = self.width
        macs = self.depth * sum(12 * n * d * d + 2 * n * n * d for n in self.tokens)
        return (6 if self.backward else 2) * macs

    @property
    def gatherings(self) -> int:
        """How often FSDP2 gathers a block for a micro-batch: for each size of crops, and again on the way back."""
        return 2 * len(set(self.tokens)) if self.backward else 1

    def block_bytes(self, precision: str) -> int:
        """What a block keeps of one image for its backward pass.

        In units of D a token: both norms' inputs (fp32), their outputs, q k v, the attended values, the
        MLP's hidden units before and after GELU. With a fused attention nothing is n x n.
        """
        wide, narrow = 4, 4 if precision == "fp32" else 2
        n = sum(self.tokens)
        features = wide * (1 + 1) + narrow * (1 + 3 + 1 + 1 + 4 + 4)
        statistics = 2 * 2 * 4 + 4 * self.heads  # mean and 1/deviation of two norms; log-sum-exp of each head
        return n * (self.width * features + statistics)


@dataclass(frozen=True)
class Step:
    """What a method trains: its stacks, and the parameters and activations outside of blocks."""

    name: str
    stacks: tuple[Stack, ...]
    outside: int
    """trained parameters outside of blocks: embeddings, heads, norms"""
    outside_bytes: int
    """activations of one image outside of blocks, in bf16 training"""
    extra_flops: float = 0.0

    @property
    def trained(self) -> int:
        return self.outside + sum(s.block * s.depth for s in self.stacks if s.backward)

    @property
    def frozen(self) -> int:
        """A teacher is as large as its student."""
        return self.trained if any(not s.backward for s in self.stacks) else 0

    @property
    def flops(self) -> float:
        return self.extra_flops + sum(s.flops for s in self.stacks)

    def state_bytes(self, world: int, sharded: bool) -> float:
        """Weights, gradients and AdamW's two averages, 4 bytes each, and a teacher's weights."""
        return (16 * self.trained + 4 * self.frozen) / (world if sharded else 1)

    def gathered_bytes(self) -> float:
        """FSDP2 beside its shards: two blocks' weights, one's gradients, and the root's weights and gradients."""
        return 12 * max(s.block for s in self.stacks) + 8 * self.outside

    def cast_bytes(self) -> float:
        """Autocast's bf16 copies of weights, kept for the backward pass; recomputing makes them again."""
        return 2.0 * self.trained

    def image_bytes(self, recompute: bool, precision: str = "bf16") -> float:
        """Activations of one image; with recomputation a block's input each, and one block's own."""
        kept = [s for s in self.stacks if s.backward]
        if not recompute:
            return self.outside_bytes + sum(s.depth * s.block_bytes(precision) for s in kept)
        inputs = sum(s.depth * sum(s.tokens) * s.width * 4 for s in kept)
        own = max(s.block_bytes(precision) - 4 * sum(s.tokens) * s.width for s in kept)
        return self.outside_bytes + inputs + own

    def exchanged_bytes(self, sharded: bool, micro_batches: int = 1) -> float:
        """What a step sends, in fp32, times (W - 1) / W through each device's link.

        DDP sends each gradient twice: to be added up, and as a sum. FSDP2 scatters gradients once and gathers weights
        for every micro-batch: blocks as often as they are used, a teacher's too, and once what is outside of blocks.
        """
        if not sharded:
            return 2 * 4 * self.trained
        blocks = sum(s.gatherings * s.block * s.depth for s in self.stacks)
        outside = self.outside * (2 if self.frozen else 1)
        return 4 * (micro_batches * (blocks + outside) + self.trained)

    def exchange_seconds(self, world: int, sharded: bool) -> float:
        """Of one micro-batch's step, over NVLink."""
        return self.exchanged_bytes(sharded) * (world - 1) / world / LINK


def mae(size: str, patch: int = 16) -> Step:
    """MAE at 224 px: a quarter of the patches in the encoder, all in a decoder of 512 x 8."""
    width, depth, heads = SIZES[size]
    n, pixels = (224 // patch) ** 2, 3 * patch * patch
    stacks = (Stack(width, depth, heads, (1 + n // 4,)), Stack(512, 8, 16, (1 + n,)))
    outside = (pixels + 4) * width + (width + 4) * 512 + 513 * pixels
    kept = n // 4 * (2 * pixels + 6 * width) + n * (6 * 512 + 18 * pixels)
    extra = 6.0 * (n // 4 * (pixels + 512) * width + n * 512 * pixels)
    return Step(f"MAE ViT-{size}/{patch}", stacks, outside, kept, extra)


def beit(size: str) -> Step:
    """BEiT at 224 px, tokens given: 75 of 196 patches are predicted among 8192 codes."""
    width, depth, heads = SIZES[size]
    stack = Stack(width, depth, heads, (197,))
    outside = 771 * width + 8193 * width
    return Step(f"BEiT ViT-{size}/16", (stack,), outside, 75 * 8192 * 10, 6.0 * width * (196 * 768 + 75 * 8192))


def ibot(size: str, locals_: int = 10) -> Step:
    """iBOT: two crops of 224 px and ten of 96, a head of 2048-2048-256-8192 and a teacher of the globals."""
    width, depth, heads = SIZES[size]
    student = Stack(width, depth, heads, (197,) * 2 + (37,) * locals_)
    teacher = replace(student, tokens=(197,) * 2, backward=False)
    head = width * 2048 + 2048**2 + 2048 * 256
    rows = 2 + locals_ + 60  # [CLS] of each crop and about 30 % of the patches of half the global crops
    kept = rows * (2 * 4 * 2048 + 8192 * 12)
    return Step(
        f"iBOT ViT-{size}/16, 2 x 224 + {locals_} x 96", (student, teacher), 771 * width + head + 256 * 8192,
        kept, (6.0 * rows + 2.0 * 394) * head + 8.0 * rows * 256 * 8192,
    )  # fmt: skip


class Row(NamedTuple):
    """One line of the tables, on `world` GPUs."""

    step: Step
    sharded: bool
    recompute: bool
    world: int = 8

    @property
    def fixed(self) -> float:
        """Bytes that do not depend on the batch."""
        gathered = self.step.gathered_bytes() if self.sharded else 0
        cast = 0 if self.recompute else self.step.cast_bytes()
        return self.step.state_bytes(self.world, self.sharded) + gathered + cast

    @property
    def images(self) -> int:
        """Images that fit a GPU filled to 80 %."""
        return int((0.8 * GPU_BYTES - self.fixed) / self.step.image_bytes(self.recompute))

    def seconds(self, images: int, rate: float = FLOPS) -> float:
        """Of arithmetic for a step; blocks are made a second time with recomputation."""
        again = sum(s.flops for s in self.step.stacks if s.backward) / 3 if self.recompute else 0
        return images * (self.step.flops + again) / rate


def main() -> None:
    steps = [mae("B"), mae("L"), mae("H", 14), beit("B"), beit("L"), ibot("B"), ibot("L"), ibot("H")]
    print("| step | parameters | GFLOP an image | state, DDP | state, FSDP2 on 8 | MB an image | recomputed |")
    print("|---|---|---|---|---|---|---|")
    for s in steps:
        cells = [
            s.name,
            f"{s.trained / 1e6:.0f} M{' + teacher' if s.frozen else ''}",
            f"{s.flops / 1e9:.0f}",
            f"{s.state_bytes(8, False) / 1e9:.1f} GB",
            f"{(s.state_bytes(8, True) + s.gathered_bytes()) / 1e9:.1f} GB",
            f"{s.image_bytes(False) / 1e6:.0f}",
            f"{s.image_bytes(True) / 1e6:.0f}",
        ]
        print(f"| {' | '.join(cells)} |")
    print("\n| step, 8 GPUs | way | images that fit a GPU | ms of arithmetic for 64 | ms of exchange |")
    print("|---|---|---|---|---|")
    for s in steps:
        for sharded, recompute in ((False, False), (True, False), (True, True)):
            row = Row(s, sharded, recompute)
            way = ("FSDP2" if sharded else "DDP") + (", recomputed" if recompute else "")
            exchange = 1e3 * s.exchange_seconds(8, sharded)
            print(f"| {s.name} | {way} | {row.images:,} | {1e3 * row.seconds(64):.0f} | {exchange:.0f} |")
    print("\n| step | images a second on 8 GPUs | cores that decode, at 800 or (12 views) 165 a second |")
    print("|---|---|---|")
    for s in steps:
        rate = 8 * FLOPS / s.flops
        print(f"| {s.name} | {rate:,.0f} | {rate / (165 if s.frozen else 800):.0f} |")


if __name__ == "__main__":
    main()
