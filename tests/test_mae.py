"""MAE line by line: its masking, decoder, target, loss and totals (fidelity.md 5 and 10)."""

import dataclasses

import pytest
import torch
from torch import nn

from unmask.masks import BlockMask, RandomMask, shuffle
from unmask.methods.base import Batch, Progress
from unmask.methods.mae import (
    MAEConfig,
    denormalize,
    normalize,
    patch_statistics,
    patchify,
    unpatchify,
)
from unmask.positions import sincos_2d
from unmask.recipes import Facts, find
from unmask.schedules import WarmupCosine
from unmask.views import View
from unmask.vit import SIZES, ViTConfig, gather

AT = Progress(0, 1, 1.0)
TINY = MAEConfig(
    vit=ViTConfig(image_size=16, patch=4, width=32, depth=2, heads=2, pos_embed="sincos", init="mae"),
    views=(View(16),),
    decoder_width=24,
    decoder_depth=1,
    decoder_heads=2,
)


def tiny(**changes):
    torch.manual_seed(0)
    return dataclasses.replace(TINY, **changes).build()


def batch_of(image, mask):
    return Batch(views=(image,), masks=(mask,), hidden=(mask.flatten().nonzero().flatten(),))


def sample(b=3, n=16, keep=4, size=(16, 16), channels=3):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(b, channels, *size, generator=generator)
    return image, shuffle(torch.rand(b, n, generator=generator), keep)


@pytest.mark.parametrize(
    ("size", "patch", "total", "trained"),
    [
        ("base", 16, 111_907_840, 111_655_680),
        ("large", 16, 329_541_888, 329_239_296),
        ("huge", 14, 657_074_508, 656_613_964),
    ],
)
def test_parameter_totals_are_the_papers(size, patch, total, trained):
    config = MAEConfig(vit=ViTConfig(patch=patch, pos_embed="sincos", init="mae", **SIZES[size]))
    with torch.device("meta"):
        mae = config.build()
    assert sum(p.numel() for p in mae.parameters()) == total
    assert sum(p.numel() for p in mae.parameters() if p.requires_grad) == trained


def test_every_layer_norm_of_encoder_and_decoder_has_epsilon_1e_6():
    norms = [m for m in tiny().modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 2 * 2 + 1 + 2 + 1
    assert {norm.eps for norm in norms} == {1e-6}


def test_the_decoders_scale_is_that_of_its_own_heads():
    with torch.device("meta"):
        mae = MAEConfig(vit=ViTConfig(pos_embed="sincos", init="mae", depth=1)).build()
    assert mae.encoder.blocks[0].attn.scale == 64**-0.5
    assert mae.decoder.blocks[0].attn.scale == 32**-0.5


def test_positions_are_sincos_with_a_zero_row_and_frozen_in_both_halves():
    mae = tiny()
    for table, width in ((mae.encoder.pos_embed, 32), (mae.decoder.pos_embed, 24)):
        assert not table.requires_grad
        torch.testing.assert_close(table[0], torch.from_numpy(sincos_2d(width, (4, 4), prefix=1)).float())
        assert table[:, 0].eq(0).all()
    assert {"encoder.pos_embed", "decoder.pos_embed"} <= mae.state_dict().keys()
    image, ids = sample()
    mae(batch_of(image, ids.mask), AT).loss.backward()
    assert mae.encoder.pos_embed.grad is None
    assert mae.decoder.pos_embed.grad is None
    named = [name for group in mae.parameter_groups() for name in group.names]
    assert not any("pos_embed" in name for name in named)


def test_raster_and_shuffled_order_have_the_same_loss_and_gradients():
    image, ids = sample()
    results = []
    for order in ("raster", "shuffled"):
        mae = tiny()
        if order == "raster":
            loss = mae(batch_of(image, ids.mask), AT).loss
        else:
            latent = mae.encoder(image, keep=ids.ids_keep)
            loss = mae.loss(image, mae.decoder(latent, ids.ids_keep), ids.mask)
        loss.backward()
        results.append((loss.detach(), {n: p.grad for n, p in mae.named_parameters() if p.requires_grad}))
    (loss, grads), (other_loss, other_grads) = results
    torch.testing.assert_close(loss, other_loss)
    assert not torch.equal(ids.ids_keep, ids.ids_keep.sort(1).values)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, other_grads[name], atol=1e-6, rtol=1e-4, msg=name)


def test_hidden_pixels_cannot_reach_the_prediction():
    image, ids = sample()
    mae = tiny()
    hidden = unpatchify(ids.mask.unsqueeze(-1).expand(-1, -1, 48).float(), (4, 4), (4, 4)).bool()
    other = torch.where(hidden, torch.randn(image.shape), image)
    assert torch.equal(mae.reconstruct(image, ids.mask), mae.reconstruct(other, ids.mask))


def test_only_predictions_of_hidden_patches_have_a_gradient():
    image, ids = sample()
    pixels = torch.randn(3, 16, 48, requires_grad=True)
    tiny().loss(image, pixels, ids.mask).backward()
    assert pixels.grad[~ids.mask].eq(0).all()
    assert pixels.grad[ids.mask].abs().sum(-1).gt(0).all()


def test_the_loss_is_the_mean_over_hidden_patches_alone():
    image, ids = sample()
    mae = tiny(norm_pixels=False)
    pixels = torch.randn(3, 16, 48)
    expected = (pixels - patchify(image, (4, 4)))[ids.mask].square().mean()
    torch.testing.assert_close(mae.loss(image, pixels, ids.mask), expected)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_step_paints_hidden_patches_alone_with_the_loss_and_gradients_of_all(depth):
    mae, (image, ids) = tiny(decoder_depth=depth), sample()
    batch = batch_of(image, ids.mask)
    wanted = mae.loss(image, mae.reconstruct(image, ids.mask), ids.mask)
    expected = torch.autograd.grad(wanted, [p for p in mae.parameters() if p.requires_grad])
    found = mae(batch, Progress(0, 1, 1.0)).loss
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found, [p for p in mae.parameters() if p.requires_grad]), expected)


def test_golden_normalized_loss_of_a_zero_prediction():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(16, 3, 224, 224, generator=generator)
    target = normalize(patchify(image, (16, 16)))
    assert float(target.square().mean()) == pytest.approx(0.998697, abs=3e-6)  # biased variance: 1.0


def test_patches_are_normalized_by_unbiased_variance_with_epsilon_inside_the_root():
    patches = torch.randn(2, 3, 12, dtype=torch.float64).float()
    mean, deviation = patch_statistics(patches)
    torch.testing.assert_close(deviation, (patches.var(-1, correction=1, keepdim=True) + 1e-6).sqrt())
    flat = torch.full((1, 1, 12), 3.0)
    assert normalize(flat).eq(0).all()
    assert patch_statistics(flat)[1] == pytest.approx(1e-3)
    torch.testing.assert_close(normalize(patches) * deviation + mean, patches)


@pytest.mark.parametrize(("patch", "size"), [((4, 4), (16, 16)), ((2, 4), (8, 24)), ((8, 2), (16, 8))], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_unpatchify_is_the_inverse_of_patchify(patch, size, channels):
    image = torch.randn(2, channels, *size)
    patches = patchify(image, patch)
    grid = (size[0] // patch[0], size[1] // patch[1])
    assert patches.shape == (2, grid[0] * grid[1], patch[0] * patch[1] * channels)
    assert torch.equal(unpatchify(patches, patch, grid), image)


def test_a_patch_is_flattened_by_row_column_channel():
    row, column, channel = torch.meshgrid(torch.arange(4), torch.arange(4), torch.arange(3), indexing="ij")
    image = (100 * row + 10 * column + channel).permute(2, 0, 1).unsqueeze(0).float()
    patches = patchify(image, (2, 2))
    assert patches[0, 1].tolist() == [20, 21, 22, 30, 31, 32, 120, 121, 122, 130, 131, 132]


def test_denormalize_restores_the_true_patches():
    image, _ = sample()
    target = normalize(patchify(image, (4, 4)))
    torch.testing.assert_close(denormalize(target, image, (4, 4)), patchify(image, (4, 4)))


def test_tokens_filled_with_their_index_come_back_to_their_places():
    mae = tiny(decoder_depth=0)
    _, ids = sample()
    decoder = mae.decoder
    seen = {}
    decoder.norm.register_forward_hook(lambda _m, args, _o: seen.__setitem__("x", args[0]))
    index = ids.ids_keep.float().unsqueeze(-1).expand(-1, -1, 32)
    latent = mae.encoder(sample()[0], keep=ids.ids_keep)
    with torch.no_grad():
        decoder.embed.weight.fill_(1 / 32)  # the mean: every feature is the index
        decoder.mask_token.fill_(-7.0)
        decoder.pos_embed.zero_()
        decoder(latent._replace(patches=index, prefix=torch.full((3, 1, 32), 99.0)), ids.ids_keep)
    x = seen["x"][..., 0]
    assert x[:, 0].round().eq(99).all()  # the class token stays in front
    expected = torch.where(ids.mask, torch.tensor(-7.0), torch.arange(16.0).expand(3, -1))
    torch.testing.assert_close(x[:, 1:], expected)


def test_the_decoder_gives_mask_tokens_their_positions():
    mae = tiny()
    image, ids = sample()
    pixels = mae.reconstruct(image, ids.mask)
    first, second = pixels[0][ids.mask[0]][:2]
    assert not torch.allclose(first, second)
    with torch.no_grad():
        mae.decoder.pos_embed.zero_()
    first, second = mae.reconstruct(image, ids.mask)[0][ids.mask[0]][:2]
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize(("image", "patch"), [((8, 24), (4, 4)), ((16, 16), (8, 4)), ((24, 8), (2, 4))], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_rectangles_patches_and_channels_train(image, patch, channels):
    vit = dataclasses.replace(TINY.vit, image_size=image, patch=patch, channels=channels, registers=2)
    mae = tiny(vit=vit, views=(View(image),))
    n = vit.grid[0] * vit.grid[1]
    x, ids = sample(2, n, n // 4, image, channels)
    loss = mae(batch_of(x, ids.mask), AT).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in mae.parameters() if p.requires_grad)


def test_another_size_than_the_configured_one_reconstructs_too():
    mae = tiny()
    x, ids = sample(2, 24, 6, (16, 24))
    assert mae.reconstruct(x, ids.mask).shape == (2, 24, 48)


def test_fresh_decoder_weights_are_maes():
    mae = tiny(decoder_width=240, decoder_heads=4)
    decoder = mae.decoder.requires_grad_(False)
    assert decoder.mask_token.std() == pytest.approx(0.02, rel=0.2)
    assert decoder.embed.weight.abs().max() == pytest.approx((6 / (240 + 32)) ** 0.5, rel=1e-3)
    assert decoder.pred.weight.abs().max() == pytest.approx((6 / (240 + 48)) ** 0.5, rel=1e-3)
    assert decoder.embed.bias.eq(0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": (View(32),)}, "the view is 32 px and the ViT expects 16"),
        ({"masks": (BlockMask(),)}, "use RandomMask"),
        ({"masks": (RandomMask(0.99),)}, "leaves 0 of 16 patches visible"),
        ({"masks": (RandomMask(0.0),)}, "leaves 16 of 16 patches visible"),
    ],
)
def test_a_config_that_cannot_train_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


@pytest.mark.parametrize("name", ["mae-vit-b16-in1k", "mae-vit-l16-in1k", "mae-vit-h14-in1k"])
def test_published_recipes_have_the_papers_optimizer(name):
    config = find(name)(Facts())
    optim = config.optim
    assert (config.batch, config.epochs, config.method.norm_pixels) == (4096, 800.0, True)
    assert (optim.betas, optim.weight_decay, optim.clip) == ((0.9, 0.95), 0.05, None)
    schedule = optim.lr_schedule(config.batch)
    assert isinstance(schedule, WarmupCosine)
    per_epoch, rates = 1_281_167 / 4096, {0: 0.0, 20: 0.0012, 40: 0.0024, 420: 0.0012, 800: 0.0}
    for epoch, rate in rates.items():
        at = Progress(epoch, 800, 1.0)._replace(steps_per_epoch=1.0)
        assert schedule(at) == pytest.approx(rate, abs=1e-9)
    halfway = Progress(int(0.5 * per_epoch), int(800 * per_epoch), per_epoch)
    assert 0 < schedule(halfway) < 0.0024 / 40  # fractional epochs: it rises within one


def test_gather_takes_kept_tokens_in_their_order():
    x = torch.arange(12.0).view(1, 6, 2)
    assert gather(x, torch.tensor([[4, 1]])).tolist() == [[[8, 9], [2, 3]]]
