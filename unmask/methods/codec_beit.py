"""BEiT's `DiscreteVAE` (Bao et al. 2021, `modeling_discrete_vae.py`; after DALLE-pytorch), at any width.

Strided convolutions down to the cells, transposed ones back up, a residual block after each, and an explicit
codebook between. What a codec is: `codec.py`.
"""

from jaxtyping import Float, Int
from torch import Tensor, nn

from .codec import Codec, CodecConfig, cells_of, product


class BeitCodec(Codec):
    """BEiT's `DiscreteVAE`; parameters keep its names."""

    def __init__(self, config: CodecConfig):
        super().__init__(config)
        d = config.width
        down, up = [], []
        for i in range(config.pools):
            n_in, n_code = (config.channels, config.code_width) if i == 0 else (d, d)
            down += [nn.Sequential(nn.Conv2d(n_in, d, 4, stride=2, padding=1), nn.ReLU()), PlainBlock(d)]
            up += [
                nn.Sequential(nn.ConvTranspose2d(n_code, d, 4, stride=2, padding=1), nn.ReLU()),
                PlainBlock(d),
            ]
        self.encoder = nn.Sequential(*down, nn.Conv2d(d, config.vocab, 1))
        self.decoder = nn.Sequential(*up, nn.Conv2d(d, config.channels, 1))
        self.codebook = nn.Embedding(config.vocab, config.code_width)

    def map(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return (image - 0.5) / 0.5

    def features(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        for layer in self.encoder[:-1]:
            x = layer(x)
        return cells_of(x)

    def scores(self, features: Float[Tensor, "*cells D"]) -> Float[Tensor, "*cells K"]:
        last = self.encoder[-1]
        assert isinstance(last, nn.Conv2d)
        return product(features, last)

    def paint(
        self, codes: Float[Tensor, "B N K"] | Int[Tensor, "B N"], grid: tuple[int, int]
    ) -> Float[Tensor, "B _ H W"]:
        x = codes @ self.codebook.weight if codes.is_floating_point() else self.codebook(codes)  # [B N D]
        return self.decoder(x.unflatten(1, grid).permute(0, 3, 1, 2))

    def pixels(self, painted: Float[Tensor, "B _ H W"]) -> Float[Tensor, "B C H W"]:
        return (painted.float() * 0.5 + 0.5).clamp(0, 1)

    def blocks(self) -> list[nn.Module]:
        return [part for part in self.modules() if isinstance(part, PlainBlock)]


class PlainBlock(nn.Module):
    """x + three convolutions with ReLUs between them."""

    def __init__(self, width: int):
        super().__init__()
        three = [nn.Conv2d(width, width, 3, padding=1) for _ in range(2)]
        self.net = nn.Sequential(three[0], nn.ReLU(), three[1], nn.ReLU(), nn.Conv2d(width, width, 1))

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        return x + self.net(x)
