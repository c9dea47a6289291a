"""The one ViT: sizes, arithmetic, shapes, and how fresh weights are drawn."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from unmask.blocks import Attention, Block, DropPath, add
from unmask.vit import SIZES, PatchEmbed, Tokens, ViT, ViTConfig, gather, macs, places_of

TINY = ViTConfig(image_size=16, patch=4, width=32, depth=2, heads=2)


def tiny(**changes):
    torch.manual_seed(0)
    return ViT(dataclasses.replace(TINY, **changes)).eval()


def stirred(vit):
    """Random in every parameter, so that nothing hides behind a zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in vit.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return vit


def images(b=2, h=16, w=16, c=3, seed=0):
    return torch.randn(b, c, h, w, generator=torch.Generator().manual_seed(seed))


# --- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "patch", "with_head", "without"),
    [
        ("tiny", 16, 5_717_416, 5_524_416),
        ("small", 16, 22_050_664, 21_665_664),
        ("base", 16, 86_567_656, 85_798_656),
        ("base", 32, 88_224_232, 87_455_232),
        ("large", 16, 304_326_632, 303_301_632),
        ("huge", 14, 632_045_800, 630_764_800),
    ],
)
def test_parameter_counts_are_the_papers(size, patch, with_head, without):
    for classes, expected in ((1000, with_head), (0, without)):
        with torch.device("meta"):
            vit = ViT(ViTConfig(patch=patch, classes=classes, **SIZES[size]))
        assert sum(p.numel() for p in vit.parameters()) == expected


@pytest.mark.parametrize(
    ("depth", "width", "heads", "rel_pos", "classes", "expected"),
    [(12, 768, 12, "per-block", 1000, 86_530_984), (24, 1024, 16, "per-block", 1000, 304_430_568)],
)
def test_parameter_counts_of_beits_classifiers_are_the_papers(depth, width, heads, rel_pos, classes, expected):
    config = ViTConfig(
        width=width, depth=depth, heads=heads, rel_pos=rel_pos, classes=classes,
        pos_embed="none", qkv_bias="qv", layer_scale=0.1, pool="mean",
    )  # fmt: skip
    with torch.device("meta"):
        assert sum(p.numel() for p in ViT(config).parameters()) == expected


def test_a_blocks_multiply_adds_are_12_n_d2_plus_2_n2_d():
    config = ViTConfig(image_size=32, patch=4, width=48, depth=2, heads=2)
    assert macs(config, 65) == 2 * (12 * 65 * 48**2 + 2 * 65**2 * 48)
    block = Block(48, 2)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # torch 2.14 counts no CPU kernel
        block(torch.randn(1, 65, 48))
    assert counter.get_total_flops() == 2 * macs(config, 65) // config.depth  # a multiply-add is two


def test_multiply_adds_follow_the_mlp_ratio():
    config = dataclasses.replace(TINY, mlp_ratio=3.0)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for block in ViT(config).blocks:
            block(torch.randn(1, 17, 32))
    assert counter.get_total_flops() == 2 * macs(config, 17)


# --- arithmetic ------------------------------------------------------------------------------------


def test_every_layer_norm_has_epsilon_1e_6():
    for config in (TINY, dataclasses.replace(TINY, classes=5, pool="mean")):
        norms = [m for m in ViT(config).modules() if isinstance(m, nn.LayerNorm)]
        assert len(norms) == 5
        assert {norm.eps for norm in norms} == {1e-6}
    other = ViT(dataclasses.replace(TINY, norm_eps=1e-12))
    assert {m.eps for m in other.modules() if isinstance(m, nn.LayerNorm)} == {1e-12}


@pytest.mark.parametrize(("gelu", "approximate"), [("erf", "none"), ("tanh", "tanh")])
def test_gelu_is_exact_unless_tanh_is_asked_for(gelu, approximate):
    x = torch.linspace(-4, 4, 32).view(1, 1, 32)
    acts = [block.mlp.act for block in ViT(dataclasses.replace(TINY, gelu=gelu)).blocks]
    for act in acts:
        assert torch.equal(act(x), nn.functional.gelu(x, approximate=approximate))


@pytest.mark.parametrize("qkv_bias", ["full", "qv", "none"])
def test_attention_is_that_of_hand_split_queries_keys_and_values(qkv_bias):
    torch.manual_seed(0)
    attention = stirred(Attention(12, 3, qkv_bias))
    x, d, heads = torch.randn(2, 5, 12), 12, 3
    weight = attention.qkv.weight
    zeros = torch.zeros(d)
    if qkv_bias == "full":
        biases = attention.qkv.bias.split(d)
    else:
        biases = (attention.q_bias, zeros, attention.v_bias) if qkv_bias == "qv" else (zeros, zeros, zeros)
    q, k, v = (x @ weight[i * d : (i + 1) * d].T + biases[i] for i in range(3))  # rows: q, then k, then v
    out = []
    for h in range(heads):  # head-major inside
        own = slice(h * d // heads, (h + 1) * d // heads)
        logits = q[..., own] @ k[..., own].transpose(1, 2) / math.sqrt(d / heads)
        out.append(logits.softmax(-1) @ v[..., own])
    expected = attention.proj(torch.cat(out, dim=-1))
    torch.testing.assert_close(attention(x), expected, atol=1e-6, rtol=1e-5)
    assert ("bias" in dict(attention.qkv.named_parameters())) == (qkv_bias == "full")


@pytest.mark.parametrize("biased", [False, True])
def test_the_fused_kernel_equals_the_explicit_products(biased):
    torch.manual_seed(0)
    attention = stirred(Attention(16, 2))
    x, bias = torch.randn(2, 7, 16), torch.randn(2, 7, 7) if biased else None
    q, k, v = attention.queries_keys_values(x)
    explicit = attention.proj((attention.weights(q, k, bias) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, bias), explicit, atol=1e-6, rtol=1e-5)


def test_bf16_on_the_cpu_is_near_fp32():
    vit = tiny()
    with torch.no_grad():
        exact = vit(images()).patches
        with torch.autocast("cpu", dtype=torch.bfloat16):
            near = vit(images()).patches
    torch.testing.assert_close(near.float(), exact, atol=0.1, rtol=0.1)


def test_patch_embedding_is_the_strided_convolution():
    torch.manual_seed(0)
    embed = PatchEmbed(dataclasses.replace(TINY, patch=(4, 8)))
    x = images(2, 16, 32)
    expected = embed.proj(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(x), expected, atol=1e-6, rtol=1e-5)
    keep = torch.tensor([[3, 0, 7], [1, 2, 15]])
    torch.testing.assert_close(embed(x, keep), gather(expected, keep), atol=1e-6, rtol=1e-5)


def test_drop_path_drops_whole_samples_and_rescales_the_rest():
    torch.manual_seed(0)
    drop, x = DropPath(0.3), torch.ones(4000, 3, 2)
    out = add(torch.zeros_like(x), x, drop(x))
    kept = out[:, 0, 0] != 0
    assert torch.equal(out[kept], torch.full_like(out[kept], 1 / 0.7))
    assert out[~kept].eq(0).all()
    assert abs(kept.float().mean() - 0.7) < 5 * math.sqrt(0.21 / 4000)
    assert drop.eval()(x) is None


def test_drop_path_rises_from_nothing_at_the_first_block_to_all_at_the_last():
    vit = ViT(dataclasses.replace(TINY, depth=5, drop_path=0.2))
    rates = [(block.drop_path1.rate, block.drop_path2.rate) for block in vit.blocks]
    assert rates == [(pytest.approx(r), pytest.approx(r)) for r in (0.0, 0.05, 0.1, 0.15, 0.2)]
    assert rates[0] == (0.0, 0.0)


def test_dropout_is_after_positions_attention_gelu_and_mlp_and_off_in_evaluation():
    vit, x = tiny(dropout=0.25), images()
    torch.testing.assert_close(vit(x).patches, tiny()(x).patches, rtol=0, atol=0)
    seen = {}
    for name, part in vit.named_modules():
        if isinstance(part, nn.Dropout):
            part.register_forward_hook(lambda part, given, made, name=name: seen.setdefault(name, []).append(made))
    vit.train()(x)
    assert {name: len(calls) for name, calls in seen.items()} == {
        "pos_drop": 1, "blocks.0.drop": 1, "blocks.0.mlp.drop": 2, "blocks.1.drop": 1, "blocks.1.mlp.drop": 2,
    }  # fmt: skip
    zeros = torch.cat([(made == 0).float().flatten() for calls in seen.values() for made in calls]).mean()
    assert 0.2 < zeros < 0.3


@pytest.mark.parametrize("value", [0.1, 1e-5])
def test_layer_scale_multiplies_each_branch_inside_drop_path(value):
    torch.manual_seed(0)
    block = Block(8, 2, layer_scale=value, drop_path=0.5)
    assert block.ls1.gamma.eq(value).all()
    assert block.ls2.gamma.eq(value).all()
    x = torch.randn(64, 3, 8)
    branch = value * block.attn(block.norm1(x))
    torch.manual_seed(1)
    after = add(x, block.attn(block.norm1(x)), block.ls1(block.drop_path1(x)))
    kept = (after - x).flatten(1).abs().sum(1) > 0
    torch.testing.assert_close(after[kept], (x + 2 * branch)[kept])  # / keep, and keep is a half
    assert 0 < kept.sum() < 64
    no_drop = block.eval()(x)
    middle = x + branch
    torch.testing.assert_close(no_drop, middle + value * block.mlp(block.norm2(middle)))


# --- inputs and outputs ----------------------------------------------------------------------------


def test_tokens_are_the_class_token_registers_and_patches():
    tokens = tiny(registers=3)(images())
    assert isinstance(tokens, Tokens)
    assert tokens.prefix.shape == (2, 4, 32)
    assert tokens.patches.shape == (2, 16, 32)
    assert tokens.grid == (4, 4)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("image", "patch"), [((16, 16), 4), ((8, 24), (4, 8)), ((24, 8), (8, 2))])
def test_any_channels_rectangle_and_patch(channels, image, patch):
    vit = tiny(channels=channels, image_size=image, patch=patch)
    tokens = vit(images(2, *image, channels))
    assert tokens.grid == vit.config.grid
    assert tokens.patches.shape[1] == math.prod(vit.config.grid)
    assert torch.isfinite(tokens.patches).all()


def test_another_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="image has 1 channels, the ViT wants 3"):
        tiny()(images(c=1))


@pytest.mark.parametrize("pos_embed", ["learned", "sincos", "none"])
@pytest.mark.parametrize("size", [(8, 8), (24, 24), (12, 32)])
def test_another_image_size_is_met_by_other_positions(pos_embed, size):
    vit = stirred(tiny(pos_embed=pos_embed))
    assert vit(images(2, *size)).grid == (size[0] // 4, size[1] // 4)


def test_an_image_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="image 18x18 does not divide into 4x4-px patches; use 16 or 20"):
        tiny()(images(2, 18, 18))


def test_relative_positions_refuse_another_grid_and_registers():
    with pytest.raises(ValueError, match="4x4 grid, the image gives 2x8; use 16x16 images"):
        tiny(rel_pos="shared")(images(2, 8, 32))
    with pytest.raises(ValueError, match="registers=0"):
        tiny(rel_pos="per-block", registers=1)


def test_sincos_positions_of_another_size_are_those_of_a_vit_of_that_size():
    at16, at24 = tiny(pos_embed="sincos"), tiny(pos_embed="sincos", image_size=24)
    torch.testing.assert_close(at16.positions((6, 6)), at24.pos_embed.detach())
    assert not at16.pos_embed.requires_grad
    assert at16.pos_embed[:, 0].eq(0).all()


def test_positions_are_added_before_patches_are_chosen():
    vit = stirred(tiny())
    keep = torch.tensor([[5, 1, 14], [0, 15, 7]])
    every, _ = vit.embed(images())
    some, _ = vit.embed(images(), keep)
    torch.testing.assert_close(some[:, 1:], gather(every[:, 1:], keep))
    torch.testing.assert_close(some[:, 0], (vit.cls_token + vit.pos_embed[:, :1])[:, 0].expand(2, -1))


def test_hidden_patches_show_the_mask_token_and_keep_their_position():
    vit = stirred(tiny(mask_token=True))
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[0, 3] = hidden[1, 7] = True
    plain, _ = vit.embed(images())
    masked, _ = vit.embed(images(), hidden=hidden)
    torch.testing.assert_close(masked[:, 1:][hidden], vit.mask_token[0, 0] + vit.pos_embed[0, [4, 8]])
    assert torch.equal(masked[:, 1:][~hidden], plain[:, 1:][~hidden])
    with pytest.raises(ValueError, match="mask_token=True"):
        tiny()(images(), hidden=hidden)


def test_without_positions_permuted_patches_give_permuted_outputs():
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).expand(2, -1)
    vit = stirred(tiny(pos_embed="none", rel_pos="shared"))
    with torch.no_grad():
        vit.rel_pos_bias.relative_position_bias_table.zero_()
        plain, permuted = vit(images()), vit(images(), keep=order)
    torch.testing.assert_close(permuted.patches, gather(plain.patches, order), atol=1e-5, rtol=1e-4)
    stirred(vit)  # the table is not zero any more: places matter
    with torch.no_grad():
        assert not torch.allclose(vit(images(), keep=order).patches, gather(vit(images()).patches, order), atol=1e-2)


def test_shared_and_per_block_bias_agree_when_their_tables_do():
    shared, own = stirred(tiny(rel_pos="shared")), stirred(tiny(rel_pos="per-block"))
    assert sum("relative_position_bias_table" in name for name, _ in shared.named_parameters()) == 1
    state = own.state_dict()
    table = shared.rel_pos_bias.relative_position_bias_table
    state |= {k: v for k, v in shared.state_dict().items() if k in state}
    state |= {k: table for k in state if k.endswith("relative_position_bias_table")}
    own.load_state_dict(state)
    assert len({p.data_ptr() for n, p in own.named_parameters() if n.endswith("bias_table")}) == 2
    torch.testing.assert_close(shared(images()).patches, own(images()).patches)


def test_intermediate_layers_come_in_order_and_are_not_normalized():
    vit = stirred(tiny(depth=3))
    with torch.no_grad():
        last, first = vit(images(), layers=(2, 0))
        x, _ = vit.embed(images())
        torch.testing.assert_close(first.patches, vit.blocks[0](x)[:, 1:])
        end = vit(images())
        torch.testing.assert_close(vit.norm(last.patches), end.patches)
        torch.testing.assert_close(vit.norm(last.prefix), end.prefix)


@pytest.mark.parametrize(
    "changes",
    [{}, {"rel_pos": "shared", "pos_embed": "none", "qkv_bias": "qv", "layer_scale": 0.3}, {"registers": 2}],
    ids=["plain", "beit", "registers"],
)
@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_tokens_that_are_read_alone_are_those_of_the_whole_with_the_same_gradients(changes, drop_path):
    vit, image = stirred(tiny(**changes, mask_token=True, drop_path=drop_path)).train(), images(b=6)
    prefix, hidden = 1 + vit.config.registers, torch.rand(6, 16, generator=torch.Generator().manual_seed(3)) < 0.4
    patches = hidden.flatten().nonzero().flatten()
    weight = torch.randn(len(patches) + 6, 32, generator=torch.Generator().manual_seed(4))

    def gradients(chosen):
        vit.zero_grad()
        (chosen * weight).sum().backward()
        return {name: p.grad.clone() for name, p in vit.named_parameters() if p.grad is not None}

    torch.manual_seed(5)  # the same samples skip the same branches
    whole = vit(image, hidden=hidden)
    wanted = torch.cat([whole.prefix[:, 0], whole.patches[hidden]])
    expected = gradients(wanted)
    torch.manual_seed(5)
    places = torch.cat([vit.cls_places(image), places_of(patches, 16, prefix)])
    found = vit.at(image, places, hidden=hidden)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradients(found), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rel_pos", ["none", "shared", "per-block"])
def test_attention_rows_sum_to_one_and_explain_the_output(rel_pos):
    vit = stirred(tiny(rel_pos=rel_pos))
    maps = vit.attention(images())
    assert [m.shape for m in maps] == [(2, 2, 17, 17)] * 2
    for each in maps:
        torch.testing.assert_close(each.sum(-1), torch.ones(2, 2, 17))
    (second,) = vit.attention(images(), layers=(1,))
    assert torch.equal(second, maps[1])
    block, (x, _) = vit.blocks[0], vit.embed(images())
    _, _, v = block.attn.queries_keys_values(block.norm1(x))
    shared = vit.rel_pos_bias() if rel_pos == "shared" else None
    torch.testing.assert_close(
        block.attn.proj((maps[0] @ v).transpose(1, 2).flatten(2)), block.attn(block.norm1(x), shared)
    )


def test_the_head_reads_the_class_token_or_fc_norm_of_the_mean_patch():
    by_cls, by_mean = stirred(tiny(classes=5)), stirred(tiny(classes=5, pool="mean"))
    with torch.no_grad():
        torch.testing.assert_close(by_cls.logits(images()), by_cls.head(by_cls(images()).prefix[:, 0]))
        last = by_mean(images(), layers=(1,))[0].patches  # no norm before pooling
        torch.testing.assert_close(by_mean.logits(images()), by_mean.head(by_mean.fc_norm(last.mean(1))))
    assert "norm.weight" not in by_mean.state_dict()
    assert "fc_norm.weight" not in by_cls.state_dict()


def test_a_width_that_does_not_divide_into_heads_is_refused():
    with pytest.raises(ValueError, match="width 32 does not divide into 3 heads"):
        tiny(heads=3)


# --- fresh weights ---------------------------------------------------------------------------------


def wide(style, **changes):
    torch.manual_seed(0)
    config = ViTConfig(image_size=32, patch=8, width=192, depth=3, heads=3, init=style, mask_token=True, **changes)
    return ViT(config).requires_grad_(False)


def test_timm_weights_are_normal_02_and_the_mask_token_zero():
    vit = wide("timm", classes=10)
    for block in vit.blocks:
        for part in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            assert part.weight.std() == pytest.approx(0.02, rel=0.02)
            assert part.weight.abs().max() > 0.06  # cut at 2, not at two sigma
            assert part.bias.eq(0).all()
    assert vit.pos_embed.std() == pytest.approx(0.02, rel=0.05)
    assert vit.mask_token.eq(0).all()
    assert vit.patch_embed.proj.weight.abs().max() <= 1 / math.sqrt(3 * 64)  # torch's default bound
    assert vit.patch_embed.proj.weight.std() == pytest.approx(1 / math.sqrt(3 * 3 * 64), rel=0.02)


def test_mae_weights_are_xavier_on_the_flattened_matrices():
    vit = wide("mae", pos_embed="sincos")
    for block in vit.blocks:
        bound = math.sqrt(6 / (4 * 192))  # one (3 D, D) matrix, not three
        assert block.attn.qkv.weight.abs().max() == pytest.approx(bound, rel=1e-3)
        assert block.attn.qkv.weight.abs().max() <= bound
        assert block.attn.qkv.bias.eq(0).all()
        assert block.mlp.fc1.weight.abs().max() == pytest.approx(math.sqrt(6 / (5 * 192)), rel=1e-3)
    patch = vit.patch_embed.proj
    assert patch.weight.abs().max() == pytest.approx(math.sqrt(6 / (192 + 3 * 64)), rel=1e-3)
    assert patch.bias.abs().max() > 0  # left at torch's default
    assert patch.bias.abs().max() <= 1 / math.sqrt(3 * 64)
    assert vit.cls_token.std() == pytest.approx(0.02, rel=0.2)
    assert vit.mask_token.std() == pytest.approx(0.02, rel=0.2)


def test_golden_xavier_bound_of_the_fused_qkv_of_vit_b():
    torch.manual_seed(0)
    weight = ViT(ViTConfig(depth=1, init="mae", image_size=32)).blocks[0].attn.qkv.weight.detach()
    assert weight.abs().max() == pytest.approx(0.044194, abs=1e-6)


def test_beit_weights_are_cut_at_one_sigma_and_shrink_with_depth():
    vit = wide("beit", qkv_bias="qv", layer_scale=0.1, pos_embed="none", rel_pos="shared")
    for i, block in enumerate(vit.blocks, start=1):
        for part, divisor in (
            (block.attn.qkv, 1.0),
            (block.mlp.fc1, 1.0),
            (block.attn.proj, math.sqrt(2 * i)),
            (block.mlp.fc2, math.sqrt(2 * i)),
        ):
            assert part.weight.std() == pytest.approx(0.010797 / divisor, rel=0.02)
            assert part.weight.abs().max() <= 0.02 / divisor * (1 + 1e-6)
        assert block.attn.q_bias.eq(0).all()
        assert block.attn.v_bias.eq(0).all()
    assert vit.patch_embed.proj.weight.std() == pytest.approx(0.010797, rel=0.02)
    assert vit.patch_embed.proj.bias.eq(0).all()
    for token in (vit.cls_token, vit.mask_token):
        assert 0 < token.abs().max() <= 0.02
    assert vit.rel_pos_bias.relative_position_bias_table.eq(0).all()


def test_jax_weights_are_xavier_with_a_zero_class_token_and_head():
    vit = wide("jax", classes=10)
    assert vit.cls_token.eq(0).all()
    assert vit.head.weight.eq(0).all()
    assert vit.pos_embed.std() == pytest.approx(0.02, rel=0.05)
    for block in vit.blocks:
        assert block.mlp.fc1.weight.abs().max() == pytest.approx(math.sqrt(6 / (5 * 192)), rel=1e-3)
        assert block.mlp.fc1.bias.std() == pytest.approx(1e-6, rel=0.2)
        assert block.attn.qkv.bias.eq(0).all()
    assert vit.patch_embed.proj.weight.std() == pytest.approx(math.sqrt(1 / (3 * 64)), rel=0.02)


@pytest.mark.parametrize("style", ["timm", "mae", "beit", "jax"])
def test_the_same_seed_draws_the_same_weights(style):
    first, again = wide(style).state_dict(), wide(style).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_smallest_model_takes_every_path():
    image = images(1, 32, 32)
    for pos_embed in ("learned", "sincos", "none"):
        for rel_pos in ("none", "shared", "per-block"):
            vit = ViT(
                ViTConfig(
                    image_size=32, patch=4, width=64, depth=2, heads=2, pos_embed=pos_embed, rel_pos=rel_pos,
                    layer_scale=0.1, drop_path=0.1, mask_token=True, classes=3,
                )
            )  # fmt: skip
            vit.logits(image).sum().backward()
            assert all(torch.isfinite(p.grad).all() for p in vit.parameters() if p.grad is not None)
