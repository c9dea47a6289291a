"""Kernels of our own against the formulas, in fp32 and by PyTorch's kernels."""

import copy
import re
import shutil

import pytest
import torch
import torch.nn.functional as F
import toys
from torch import nn

from unmask import checkpoint, passes
from unmask.blocks import Block
from unmask.budget import synthetic_batch
from unmask.compilation import kernel_notes
from unmask.config import DataConfig, OptimConfig
from unmask.methods.base import Progress
from unmask.methods.distill import PatchLoss
from unmask.methods.mae import MAEConfig, mean_square, normalize, patchify
from unmask.methods.relaxation import sample
from unmask.optim import build_optimizer, clip_gradients
from unmask.passes import build, weights
from unmask.run import last_kernels
from unmask.views import View
from unmask.vit import ViTConfig

needs_kernels = pytest.mark.skipif(passes.why_not() is not None, reason=f"no kernels here: {passes.why_not()}")


@pytest.fixture(autouse=True)
def kernels_are_on_afterwards():
    yield
    passes.switch(True)


def near(found, exact, most):
    """Whether the error is small beside the whole."""
    assert ((found.float() - exact).norm() / exact.norm()) < most


def leaf(*shape, dtype=torch.float32):
    return torch.randn(*shape).to(dtype).requires_grad_()


def grads(*leaves):
    return [leaf.grad.float() for leaf in leaves]


def twins(*leaves):
    """The same numbers, in fp32, with gradients of their own."""
    return [leaf.detach().float().requires_grad_() for leaf in leaves]


@needs_kernels
@pytest.mark.parametrize("shape", [(3, 5, 48), (2, 7, 33), (1, 1, 1)])
@pytest.mark.parametrize("scaled", [True, False])
def test_a_residual_sum_and_its_norm_are_the_formula(shape, scaled):
    torch.manual_seed(0)
    width = shape[-1]
    x, product, bias = leaf(*shape), leaf(*shape, dtype=torch.bfloat16), leaf(width)
    gamma = leaf(width) if scaled else None
    chance = torch.tensor([0.0, 2.0, 1.5])[: shape[0]].view(-1, 1, 1) if scaled else None
    layer = nn.LayerNorm(width, eps=1e-3)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    other = copy.deepcopy(layer)
    total, normed = passes.add_norm(x, passes.Branch(product, bias, gamma, chance, None), layer)
    assert total.dtype == torch.float32 and normed.dtype == torch.bfloat16

    exact = twins(x, product, bias, *([gamma] if scaled else []))
    sum_ = exact[0] + (exact[1] + exact[2]) * ((exact[3] if scaled else 1.0) * (1.0 if chance is None else chance))
    expected = other(sum_)
    torch.testing.assert_close(total, sum_, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(normed.float(), expected, atol=1e-6, rtol=2**-8)

    of_total, of_normed = torch.randn(shape), torch.randn(shape).bfloat16()
    torch.autograd.backward([total, normed], [of_total, of_normed])
    torch.autograd.backward([sum_, expected], [of_total, of_normed.float()])
    leaves = [x, bias, *([gamma] if scaled else [])]
    for found, right in zip(leaves, [exact[0], *exact[2:]], strict=True):
        torch.testing.assert_close(found.grad, right.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(product.grad.float(), exact[1].grad, atol=1e-5, rtol=2**-8)
    torch.testing.assert_close(layer.weight.grad, other.weight.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(layer.bias.grad, other.bias.grad, atol=1e-4, rtol=1e-4)


@needs_kernels
def test_gradients_that_are_not_asked_for_are_left_out():
    x, layer = leaf(2, 3, 8), nn.LayerNorm(8)
    total, normed = passes.norm(x, layer)
    normed.float().sum().backward(retain_graph=True)  # only through the norm
    through_norm = x.grad.clone()
    x.grad = None
    total.sum().backward()  # only past it
    assert torch.equal(x.grad, torch.ones_like(x)) and not torch.equal(through_norm, x.grad)

    product, bias = leaf(2, 3, 8, dtype=torch.bfloat16), leaf(8)
    passes.add(x, passes.Branch(product, bias, None, None, None)).sum().backward()
    assert torch.equal(bias.grad, torch.full((8,), 6.0)) and torch.equal(product.grad, torch.ones_like(product))


@needs_kernels
@pytest.mark.parametrize("width", [1, 16, 37, 768])
def test_gelu_with_its_bias_is_the_exact_one(width):
    torch.manual_seed(0)
    product, bias = (3 * torch.randn(9, width)).bfloat16().requires_grad_(), leaf(width)
    exact = twins(product, bias)
    expected, grad = F.gelu(exact[0] + exact[1]), torch.randn(9, width).bfloat16()
    found = passes.gelu(product, bias)
    torch.testing.assert_close(found.float(), expected, atol=1e-6, rtol=2**-8)
    expected.backward(grad.float())
    found.backward(grad.clone())
    torch.testing.assert_close(product.grad.float(), exact[0].grad, atol=1e-5, rtol=2**-7)
    torch.testing.assert_close(bias.grad, exact[1].grad, atol=1e-4, rtol=1e-4)


@needs_kernels
def test_gelu_keeps_its_relative_precision_where_it_is_nearly_zero():
    x = torch.linspace(-12, 12, 4801).bfloat16()
    found = passes.gelu(x.clone(), torch.zeros(len(x))).double()
    expected = F.gelu(x.double())
    some = expected.abs() > 1e-7
    assert ((found - expected)[some] / expected[some]).abs().max() < 2**-7


@needs_kernels
@pytest.mark.parametrize(("b", "t", "heads", "d"), [(2, 197, 3, 16), (3, 17, 2, 32), (1, 1, 1, 8), (4, 65, 1, 5)])
@pytest.mark.parametrize("biased", [True, False])
def test_attention_is_the_formula(b, t, heads, d, biased):
    torch.manual_seed(0)
    product = leaf(b, t, 3 * heads * d, dtype=torch.bfloat16)
    bias, shared = (leaf(3 * heads * d), leaf(heads, t, t)) if biased else (None, None)
    exact = twins(product, *([bias, shared] if biased else []))
    q, k, v = (exact[0] + (exact[1] if biased else 0)).view(b, t, 3, heads, d).permute(2, 0, 3, 1, 4)
    mask = exact[2] if biased else None
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(b, t, -1)
    found = passes.attend(product, bias, heads, shared)
    near(found.detach(), expected.detach(), 0.01)
    grad = torch.randn(expected.shape)
    expected.backward(grad)
    found.backward(grad.bfloat16())
    leaves = [product, *([bias, shared] if biased and t > 1 else [])]  # of one token the softmax has no gradient
    for leaf_, right in zip(leaves, exact, strict=False):
        near(leaf_.grad, right.grad, 0.02)


@needs_kernels
def test_a_softmax_of_extreme_logits_is_one_hot_and_a_nan_stays_one():
    qkv = torch.zeros(1, 3, 3, 1, 1)
    qkv[0, :, 0], qkv[0, :, 1] = 1.0, torch.tensor([1e4, 0.0, -1e4]).view(3, 1, 1)
    qkv[0, :, 2] = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    assert passes.attend(qkv.view(1, 3, 3).bfloat16(), None, 1, None).flatten().tolist() == [1.0, 1.0, 1.0]
    qkv[0, 1, 1] = float("nan")
    assert passes.attend(qkv.view(1, 3, 3).bfloat16(), None, 1, None).isnan().all()
    x = torch.tensor([[1.0, float("nan")], [1.0, 2.0]])
    assert passes.norm(x, nn.LayerNorm(2))[1].isnan().all(1).tolist() == [True, False]
    assert passes.gelu(torch.tensor([[float("nan"), 1.0]]).bfloat16(), torch.zeros(2)).isnan().tolist() == [
        [True, False]
    ]


@needs_kernels
def test_numbers_are_rounded_to_bf16_as_torch_does_it():
    torch.manual_seed(0)
    bits = torch.randint(-(2**31), 2**31 - 1, (3 * 4096,), dtype=torch.int64).to(torch.int32)
    values = torch.cat(
        [bits.view(torch.float32), torch.tensor([0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, torch.inf, 3.4e38])]
    )
    values = values[: len(values) // 3 * 3]
    nothing = torch.zeros(1, 1, len(values)).bfloat16()
    total = torch.empty(3, 1, 1, len(values) // 3, dtype=torch.bfloat16)
    address = [nothing.data_ptr(), values.data_ptr()]
    build.library().split(1, 1, 1, 1, len(values) // 3, *address, 1.0, total.data_ptr())
    expected, found = values.bfloat16(), total.flatten()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found[~found.isnan()] + 0, expected[~expected.isnan()] + 0)


KINDS = [
    {},
    {"qkv_bias": "qv", "layer_scale": 0.1, "drop_path": 0.5},
    {"qkv_bias": "none", "drop_path": 0.3},
    {"drop_path": 0.999},
]


@needs_kernels
@pytest.mark.parametrize("only", [None, torch.tensor([1, 5, 17, 33])], ids=["all", "some"])
@pytest.mark.parametrize("kind", KINDS, ids=["plain", "beit", "no-bias", "dropped"])
def test_a_block_is_as_near_to_fp32_as_with_the_kernels_of_pytorch(kind, only):
    torch.manual_seed(0)
    block, x = Block(96, 3, **kind), torch.randn(4, 13, 96)
    bias = torch.randn(3, 13, 13) if kind else None
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3 if parameter.ndim > 1 else 0.5)

    def run(bf16, kernels):
        passes.switch(kernels)
        block.zero_grad()
        given = [x.clone().requires_grad_(), *([] if bias is None else [bias.clone().requires_grad_()])]
        torch.manual_seed(1)  # drop path
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = block(*given, *([] if bias is not None else [None]), only)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        return {"y": y.detach()} | {n: p.grad.clone() for n, p in block.named_parameters()} | dict(
            zip(("x", "bias"), grads(*given), strict=False)
        )  # fmt: skip

    exact, plain, ours = run(False, False), run(True, False), run(True, True)
    assert kind.get("drop_path") == 0.999 or not torch.equal(plain["y"], ours["y"])  # these are the kernels
    for name, right in exact.items():
        theirs = (plain[name] - right).norm()
        assert (ours[name] - right).norm() <= 2 * theirs + 1e-6 * right.norm(), name


@needs_kernels
@pytest.mark.parametrize("images", [1, 4])
def test_whichever_samples_drop_path_leaves_the_block_is_the_same(images):
    torch.manual_seed(0)
    block, x = Block(64, 2, layer_scale=0.5, drop_path=0.5), torch.randn(images, 9, 64)
    left = set()

    def run(seed, kernels):
        passes.switch(kernels)
        given = x.clone().requires_grad_()
        torch.manual_seed(seed)
        with torch.autocast("cpu", torch.bfloat16):
            y = block(given)
        block.zero_grad()
        y.square().sum().backward()
        return torch.cat([y.detach().flatten(), given.grad.flatten(), *(p.grad.flatten() for p in block.parameters())])

    for seed in range(40):
        plain, ours, again = run(seed, False), run(seed, True), run(seed, True)
        assert torch.equal(ours, again)
        near(ours, plain, 0.01)
        torch.manual_seed(seed)
        left.add(int((block.drop_path1(x) > 0).sum()))
    assert 1 in left  # whose factors are a view


@needs_kernels
def test_operands_that_are_not_contiguous_are_copied_and_others_refused():
    torch.manual_seed(0)
    flipped = torch.randn(3, 5, 96).bfloat16().transpose(0, 1)
    assert torch.equal(passes.attend(flipped, None, 2, None), passes.attend(flipped.contiguous(), None, 2, None))
    assert torch.equal(passes.gelu(flipped, torch.zeros(96)), passes.gelu(flipped.contiguous(), torch.zeros(96)))
    with pytest.raises(ValueError, match="kernels read contiguous tensors on a CPU"):
        build.addresses(torch.zeros(1).expand(3))
    with torch.autocast("cpu", torch.bfloat16):
        assert not Block(32, 2).bfloat16().can_join(torch.randn(2, 5, 32))


@needs_kernels
def test_the_same_threads_give_the_same_bits():
    torch.manual_seed(0)
    block, x = Block(64, 2, layer_scale=0.1), torch.randn(5, 9, 64)

    def run():
        block.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            block(x).square().sum().backward()
        return [p.grad.clone() for p in block.parameters()]

    assert all(map(torch.equal, run(), run()))


@needs_kernels
def test_no_kernels_in_fp32_under_dropout_or_with_the_other_gelu():
    x = torch.randn(2, 5, 32)
    assert not Block(32, 2).can_join(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert Block(32, 2).can_join(x)
        assert not Block(32, 2, dropout=0.1).can_join(x) and Block(32, 2, dropout=0.1).eval().can_join(x)
        assert not Block(32, 2, gelu="tanh").can_join(x)
        passes.switch(False)
        assert not Block(32, 2).can_join(x)


@needs_kernels
@pytest.mark.parametrize(("k", "temperature"), [(8192, 0.5), (512, 1 / 16), (37, 1.0)])
@pytest.mark.parametrize("drawn", [True, False])
def test_relaxed_codes_and_their_gradient_are_those_of_pytorchs_kernels(k, temperature, drawn):
    torch.manual_seed(0)
    logits, noise = (3 * torch.randn(6, 50, k)).bfloat16(), None if drawn else torch.randn(6, 50, k)

    def run(kernels):
        passes.switch(kernels)
        x = logits.clone().requires_grad_()
        torch.manual_seed(1)
        found = sample(x, temperature, noise)
        ((found.codes * torch.linspace(0, 1, k)).sum() + (found.kl * torch.linspace(0, 1, 50)).sum()).backward()
        return found, x.grad

    (plain, plain_grad), (ours, grad) = run(False), run(True)
    assert torch.equal(ours.ids, plain.ids)
    torch.testing.assert_close(ours.kl, plain.kl, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.mean, plain.mean, atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(ours.codes.float(), plain.codes.float(), atol=1e-6, rtol=2**-7)
    near(grad, plain_grad.float(), 1e-3)


@needs_kernels
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(("patch", "channels"), [((4, 4), 3), ((2, 6), 1), ((3, 4), 5)])
def test_the_error_of_pixels_is_mae_s_loss(normalized, patch, channels):
    torch.manual_seed(0)
    image = torch.rand(3, channels, 12, 24)
    hidden = torch.randperm(3 * (12 // patch[0]) * (24 // patch[1]))[:17]
    pixels = leaf(17, patch[0] * patch[1] * channels, dtype=torch.bfloat16)
    (exact,) = twins(pixels)
    target = patchify(image, patch).flatten(0, 1)[hidden]
    expected = mean_square(exact, normalize(target) if normalized else target)
    found = passes.pixel_error(pixels, image, hidden, patch, normalized)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-5)
    (found * 0.5).backward()
    (expected * 0.5).backward()
    torch.testing.assert_close(pixels.grad.float(), exact.grad, atol=1e-6, rtol=2**-7)


@needs_kernels
def test_a_step_of_mae_is_the_same_with_our_kernels_and_pytorchs():
    config = MAEConfig(
        vit=ViTConfig(32, 8, width=64, depth=2, heads=2, pos_embed="sincos"),
        views=(View(32),), decoder_width=32, decoder_depth=2, decoder_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    method, batch = config.build(), synthetic_batch(config, DataConfig(), 4, torch.device("cpu"))

    def run(bf16, kernels):
        passes.switch(kernels)
        method.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = method(batch, Progress(0, 10, 1.0)).loss
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None])

    exact, plain, ours = run(False, False), run(True, False), run(True, True)
    assert ours[0] == pytest.approx(exact[0], rel=3e-3) and not torch.equal(ours[1], plain[1])
    assert (ours[1] - exact[1]).norm() <= 1.5 * (plain[1] - exact[1]).norm()


@needs_kernels
@pytest.mark.parametrize(("rows", "k"), [(7, 33), (1100, 64), (3, 8192), (0, 16)])
def test_ibot_s_patch_loss_and_what_it_observes_are_those_of_pytorchs_kernels(rows, k):
    torch.manual_seed(0)
    teacher, logits = (3 * torch.randn(2, rows, k)).bfloat16().unbind()
    logits[: rows // 2] = teacher[: rows // 2]
    center, weight = torch.randn(k), torch.rand(rows)

    def run(kernels):
        passes.switch(kernels)
        student = logits.clone().requires_grad_()
        loss, seen = PatchLoss()(teacher, center, 0.05, student, 0.1, weight)
        (0.5 * loss).backward()
        return loss, seen, student.grad.float()

    (plain, plain_seen, plain_grad), (ours, seen, grad) = run(False), run(True)
    torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-5)
    assert seen.keys() == plain_seen.keys()
    for name, value in plain_seen.items():
        torch.testing.assert_close(seen[name], value, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(grad, plain_grad, atol=1e-6, rtol=2**-6)


@needs_kernels
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_images_are_normalized_as_by_the_formula(channels):
    torch.manual_seed(0)
    images = torch.randint(256, (3, 7, 9, channels), dtype=torch.uint8).permute(0, 3, 1, 2)
    scale, shift = torch.rand(2, channels, 1, 1).unbind()
    assert passes.can_normalize(images) and not passes.can_normalize(images.permute(0, 1, 3, 2))
    found = passes.normalize(images, scale, shift)
    assert found.is_contiguous()
    torch.testing.assert_close(found, images * scale + shift, atol=1e-6, rtol=1e-6)


# --- weights -------------------------------------------------------------------------------------------------

SHAPES = [(64, 32), (5,), (3, 3, 7), (1000, 77), (1,)]


@needs_kernels
def test_adamw_moves_weights_and_keeps_state_as_pytorchs_does():
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(*shape)) for shape in SHAPES]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]

    def optimizer(kind, weights, **more):
        groups = [{"params": weights[:2], "weight_decay": 0.05}, {"params": weights[2:], "weight_decay": 0.0}]
        return kind(groups, lr=1e-3, betas=(0.9, 0.95), **more)

    own, usual = optimizer(passes.AdamW, ours), optimizer(torch.optim.AdamW, theirs, fused=True)
    own.small_gradients(ours[:1])
    before = weights.half(ours[0]).clone()
    for step in range(20):
        for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            grad = None if i == 4 and step < 3 else torch.randn_like(mine).bfloat16()  # iBOT's prototypes begin later
            small = getattr(mine, "grad_dtype", None) == torch.bfloat16
            other.grad = None if grad is None else grad.float()
            mine.grad = grad if grad is None or small else grad.float()
        own.step()
        usual.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=2e-6, rtol=2e-6)
    found, expected = own.state_dict()["state"], usual.state_dict()["state"]
    for i, state in expected.items():
        assert found[i].keys() == state.keys() and found[i]["step"] == state["step"]
        torch.testing.assert_close(found[i], state, atol=1e-6, rtol=1e-5)
    assert not torch.equal(weights.half(ours[0]), before)
    assert torch.equal(weights.half(ours[0]), ours[0].detach().bfloat16())
    optimizer(torch.optim.AdamW, theirs, fused=True).load_state_dict(own.state_dict())


@needs_kernels
def test_a_copy_in_bf16_is_made_anew_when_others_change_the_weight():
    weight = nn.Parameter(torch.randn(4, 3))
    optimizer = passes.AdamW([weight])
    first = weights.half(weight)
    assert weights.half(weight) is first and torch.equal(first, weight.detach().bfloat16())
    with torch.no_grad():
        weight.mul_(2)
    assert torch.equal(weights.half(weight), weight.detach().bfloat16())
    del optimizer
    weight.data.mul_(2)  # not told to anybody
    assert torch.equal(weights.half(weight), weight.detach().bfloat16())


@needs_kernels
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_weights_that_pytorchs_fused_optimizers_move_are_copied_anew(kind):
    torch.manual_seed(0)
    block, x = Block(16, 2), torch.randn(2, 5, 16)
    optimizer = kind(block.parameters(), lr=0.1, fused=True)  # it changes weights and not their versions
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = block(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = block(x)
        passes.switch(False)
        near(found, block(x), 2e-2)


@needs_kernels
def test_our_adamw_refuses_weights_it_cannot_move():
    for weight in (torch.randn(4, 3).t(), torch.randn(3, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match=r"contiguous fp32 weights on a CPU.*torch\.optim\.AdamW"):
            passes.AdamW([nn.Parameter(weight)])


@needs_kernels
@pytest.mark.parametrize("small", [True, False])
def test_a_projection_and_its_gradients_are_autocasts(small):
    torch.manual_seed(0)
    weight, x, grad = nn.Parameter(torch.randn(48, 64)), leaf(4, 10, 64, dtype=torch.bfloat16), torch.randn(4, 10, 48)
    other, y = nn.Parameter(weight.detach().clone()), x.detach().clone().requires_grad_()
    optimizer = passes.AdamW([weight])
    if small:
        optimizer.small_gradients([weight])
    found = passes.project(x, weight)
    found.backward(grad.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        expected = F.linear(y, other)
    expected.backward(grad.bfloat16())
    assert torch.equal(found, expected) and torch.equal(x.grad, y.grad)
    assert torch.equal(weight.grad.float(), other.grad)
    assert weight.grad.dtype == (torch.bfloat16 if small and hasattr(torch.Tensor, "grad_dtype") else torch.float32)


@needs_kernels
def test_gradients_are_in_fp32_again_when_the_optimizer_is_gone():
    weight = nn.Parameter(torch.randn(4, 3))
    optimizer = passes.AdamW([weight])
    optimizer.small_gradients([weight])
    passes.project(torch.randn(2, 3).bfloat16(), weight).sum().backward()
    del optimizer
    assert weight.grad is None
    passes.project(torch.randn(2, 3).bfloat16(), weight).sum().backward()
    assert weight.grad.dtype == torch.float32


@needs_kernels
@pytest.mark.parametrize("by", ["global", "tensor"])
def test_gradients_in_bf16_are_clipped_without_rounding_them(by):
    torch.manual_seed(0)
    small, wide = ([nn.Parameter(torch.zeros(*shape)) for shape in SHAPES] for _ in range(2))
    own = passes.AdamW(small, lr=1e-2)
    own.small_gradients(small)
    for one, other in zip(small, wide, strict=True):
        one.grad = torch.randn_like(one).bfloat16()
        other.grad = one.grad.float()
    config = OptimConfig(clip=1.0, clip_by=by)
    torch.testing.assert_close(clip_gradients(small, config), clip_gradients(wide, config))
    own.step()
    torch.optim.AdamW(wide, lr=1e-2).step()
    for one, other in zip(small, wide, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@needs_kernels
@pytest.mark.parametrize("micro", [8, 4])
def test_gradients_stay_in_bf16_for_one_micro_batch_and_a_run_goes_on_with_the_same_bits(micro, tmp_path, monkeypatch):
    seen, step = set(), passes.AdamW._step

    def watched(optimizer, group, given):
        seen.update(p.grad.dtype for p in given)
        step(optimizer, group, given)

    def state():
        method = toys.TINY.build()
        optimizer = build_optimizer(method.parameter_groups(), OptimConfig())
        checkpoint.load(tmp_path, 4, method, optimizer)
        return {"method": dict(method.state_dict()), "optimizer": checkpoint.optimizer_state(optimizer)}

    monkeypatch.setattr(passes.AdamW, "_step", watched)
    how = {"steps": 4, "precision": "bf16", "compile": "auto", "device_batch": micro, "save_every": "2", "clip": 1.0}
    toys.run(tmp_path, **how)
    whole = state()
    shutil.rmtree(tmp_path / "checkpoints" / "step-0000004")
    toys.run(tmp_path, **how)
    assert toys.same(state(), whole)
    assert (torch.bfloat16 in seen) == (micro == 8 and hasattr(torch.Tensor, "grad_dtype"))


@pytest.mark.parametrize("hardware", ["bf16", "fp32"])
def test_a_run_in_bf16_says_where_the_processor_has_no_products_in_it(hardware, monkeypatch):
    monkeypatch.setattr("unmask.compilation.hardware_precision", lambda device: hardware)
    said = kernel_notes(toys.config("unused", precision="bf16", compile="off"), toys.ALONE, [])
    assert [line for line in said if "--precision fp32" in line] == said
    assert len(said) == (hardware == "fp32")


def test_a_run_that_goes_on_with_other_kernels_says_so(tmp_path):
    for compile_ in ("auto", "off"):
        run = toys.run(tmp_path, steps=2, precision="bf16", compile=compile_)
    was, now = last_kernels(run.path)
    assert now == "PyTorch's, as asked" and was != now
    assert f"kernels were {was}, and are PyTorch's, as asked now" in (run.path / "log.txt").read_text()


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"CC": "no-such-compiler"}, "CC names no-such-compiler, which is not found"),
        ({"CC": "false"}, "^false failed with 1: it said nothing"),
        ({"CC": "true"}, "the compiler made nothing"),
        ({"CC": 'gcc "'}, "No closing quotation"),
        ({"TMPDIR": "/dev/null"}, "usable temporary directory|Not a directory"),
    ],
)
def test_without_a_compiler_pytorchs_kernels_do_it_and_it_is_said_why(monkeypatch, variables, why):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", variables.get("TMPDIR"))  # or it is kept from before
    for function in (build.library, build.why_not):
        function.cache_clear()
    try:
        if build.platform.system() == "Linux":
            assert re.search(why, passes.why_not() or "")
        assert not passes.ready()
        with torch.autocast("cpu", torch.bfloat16):
            block = Block(32, 2)
            assert not block.can_join(torch.randn(1, 3, 32)) and block(torch.randn(1, 3, 32)).shape == (1, 3, 32)
    finally:
        for function in (build.library, build.why_not):
            function.cache_clear()
