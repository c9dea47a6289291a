"""iBOT and DINO: each trap of the original as a test, and a slow, dense rewriting as the reference."""

import copy
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ibot_toys import CPU, DINO, OPTIM, SMALL, batch_for, made, run_config, stepped

from unmask import config as configs
from unmask.methods.base import Progress
from unmask.methods.distill import cls_loss
from unmask.methods.ibot import GLOBAL_1, GLOBAL_2, LOCAL, MASK, IBOTConfig
from unmask.optim import build_optimizer, clip_gradients
from unmask.parallel import World, wrap
from unmask.positions import resize_pos_embed
from unmask.testing.goldens import run_goldens
from unmask.train import update
from unmask.views import View, expand
from unmask.vit import ViT
from unmask.weights.ibot import to_official

GOLDEN = Path(__file__).parent / "golden"

# --- goldens -----------------------------------------------------------------------------------------


def test_goldens_of_the_official_ibot_are_met(tmp_path):
    for path in GOLDEN.glob("ibot_*"):
        (tmp_path / path.name).symlink_to(path)
    report = run_goldens(tmp_path)
    assert report["failed"] == []
    assert report["missing"] == []
    assert len(report["cases"]) == 7


# --- the loss ----------------------------------------------------------------------------------------


def dense(method, batch, at):
    """The loss as the original computes it: all logits, all pairs in a loop."""
    config, n = method.config, method.config.globals
    tau, patch_tau = config.temperatures(at)

    def tokens(network, image, hidden=None):
        found = network.vit(image, hidden=hidden)
        return network.head(torch.cat([found.prefix, found.patches], dim=1))

    with torch.no_grad():
        teacher = [tokens(method.teacher, view) for view in batch.views[:n]]
    student = [tokens(method.student, v, m) for v, m in zip(batch.views[:n], batch.masks, strict=True)]
    cls = [s[0] for s in student] + [tokens(method.student, view)[0] for view in batch.views[n:]]
    pairs, patches = [], []
    for q, (t_cls, t_patch) in enumerate(teacher):
        for v, s in enumerate(cls):
            if v != q:
                p = ((t_cls - method.center) / tau).softmax(-1)
                pairs.append(-(p * (s / 0.1).log_softmax(-1)).sum(-1).mean())
        p = ((t_patch - method.patch_center) / patch_tau).softmax(-1)
        each = -(p * (student[q][1] / 0.1).log_softmax(-1)).sum(-1)
        patches.append(((each * batch.masks[q]).sum(1) / batch.masks[q].sum(1).clamp(min=1)).mean())
    centers = torch.cat([t[0] for t in teacher]).mean(0), torch.cat([t[1] for t in teacher]).mean((0, 1))
    return torch.stack(pairs), torch.stack(patches), centers


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shared_head": False, "patch_prototypes": 17},
        {"shared_head": False, "shared_head_teacher": True},
        {"views": (View(16, count=2),)},
        {"views": (View(16, count=2), View(8, count=2), View(12))},
        {"norm_last_layer": True, "cls_weight": 0.5, "patch_weight": 2.0, "head_act": "relu", "head_layers": 2},
    ],
    ids=["shared", "separate", "teacher shared", "no locals", "two local sizes", "weights"],
)
def test_loss_gradients_and_centers_equal_the_dense_ones(options):
    config = dataclasses.replace(SMALL, **options)
    method, batch, at = made(config), batch_for(config), Progress(0, 10, 1.0)
    method.center.normal_(std=0.1)
    method.patch_center.normal_(std=0.1)
    pairs, patches, centers = dense(method, batch, at)
    expected = pairs.mean() * config.cls_weight + patches.mean() * config.patch_weight
    wanted = torch.autograd.grad(expected, [p for p in method.student.parameters() if p.requires_grad])
    out = method(batch, at)
    out.loss.backward()
    torch.testing.assert_close(out.loss, expected)
    got = [p.grad for p in method.student.parameters() if p.requires_grad]
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.sums["cls"] / out.sums["images"], centers[0])
    torch.testing.assert_close(out.sums["patch"] / out.sums["images"], centers[1])


def wave(*shape, s):
    """Fidelity 9: t(shape, s)[flat k] = sin((k + 1) s)."""
    return (torch.arange(1, math.prod(shape) + 1, dtype=torch.float64) * s).sin().float().reshape(shape)


def test_toy_numbers_of_the_official_loss():
    config = dataclasses.replace(
        SMALL,
        views=(View(16, count=2), View(8, count=2)),
        prototypes=5,
        teacher_temperature=0.04,
        patch_warmup_temperature=0.07,
    )
    method = made(config)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[0, :2] = mask[3, 1:] = True
    hidden = mask.flatten().nonzero().flatten()
    weight = (1 / (mask.sum(1).clamp(min=1) * 4))[hidden // 4]
    teacher, patches = wave(4, 5, s=1.1), wave(4, 4, 5, s=0.9)
    at = Progress(0, 100, 1.0)
    _, metrics, _ = method.loss(
        (wave(4, 2, 5, s=0.7), wave(4, 4, 5, s=0.3).flatten(0, 1)[hidden]),
        (teacher.unflatten(0, (2, 2)), patches.flatten(0, 1)[hidden]),
        weight,
        at,
    )
    assert metrics["loss_cls"].item() == pytest.approx(5.4983096, abs=2e-6)
    assert metrics["loss_patch"].item() == pytest.approx(1.9592076, abs=2e-6)
    method.update_centers({"cls": teacher.sum(0), "patch": patches.mean(1).sum(0), "images": torch.tensor(4.0)})
    first = torch.tensor([-0.0048936, 0.0559934, 0.0556904, -0.0054716, -0.0606542])
    second = torch.tensor([0.0007357, 0.0066711, 0.0075580, 0.0027251, -0.0041701])
    torch.testing.assert_close(method.center, first, atol=1e-7, rtol=0)
    torch.testing.assert_close(method.patch_center, second, atol=1e-7, rtol=0)


def test_cls_loss_takes_22_pairs_of_twelve_crops_and_never_the_same_view():
    teacher = torch.eye(2).unsqueeze(1)  # view q is sure of prototype q
    student = torch.zeros(12, 1, 2)
    student[0, 0, 1], student[1, 0, 0], student[2:, 0, :] = -1.0, -1.0, -3.0
    assert cls_loss(teacher, student).item() == pytest.approx((1 + 1 + 20 * 3) / 22)
    student[0, 0, 0] = student[1, 0, 1] = -1e6  # q = v
    assert cls_loss(teacher, student).item() == pytest.approx(62 / 22)


def test_whole_images_add_nothing_to_the_patch_loss_but_stay_in_its_mean():
    method, batch, at = made(), batch_for(), Progress(0, 10, 1.0)
    one = torch.zeros_like(batch.masks[0])
    one[0, 3:6] = True
    masks, hidden = (one, one), (one.flatten().nonzero().flatten(),) * 2
    few = method(batch._replace(masks=masks, hidden=hidden), at).metrics["loss_patch"]
    rows = slice(0, 1)
    alone = batch._replace(
        views=tuple(v[rows] for v in batch.views), masks=tuple(m[rows] for m in masks), hidden=hidden
    )
    torch.testing.assert_close(few * 4, method(alone, at).metrics["loss_patch"])


def test_a_batch_without_masks_has_no_patch_loss_and_finite_gradients():
    method, batch = made(), batch_for()
    none = torch.zeros(0, dtype=torch.int64)
    out = method(
        batch._replace(masks=tuple(torch.zeros_like(m) for m in batch.masks), hidden=(none, none)), Progress(0, 9, 1.0)
    )
    out.loss.backward()
    assert out.metrics["loss_patch"] == 0
    assert all(torch.isfinite(v).all() for v in out.metrics.values())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.student.parameters())


# --- who sees what -----------------------------------------------------------------------------------


def test_teacher_sees_whole_globals_student_masked_globals_and_whole_locals(monkeypatch):
    method, batch = made(), batch_for()
    seen, embed = [], ViT.embed

    def watched(vit, image, keep=None, hidden=None):
        seen.append(("teacher" if vit is method.teacher.vit else "student", image.shape, hidden))
        return embed(vit, image, keep, hidden)

    monkeypatch.setattr(ViT, "embed", watched)
    method(batch, Progress(0, 10, 1.0))
    (_, globals_, mask), (_, locals_, unmasked), (teacher, images, whole) = seen
    assert (teacher, unmasked, whole) == ("teacher", None, None)
    assert torch.equal(mask, torch.cat(batch.masks))
    assert globals_ == images == (8, 3, 16, 16)
    assert locals_ == (12, 3, 8, 8)  # three crops of one size: one pass


def test_cls_of_the_student_comes_from_masked_globals():
    method, batch, at = made(), batch_for(), Progress(0, 10, 1.0)
    before = method(batch, at).metrics["loss_cls"]
    method.student.vit.mask_token.data.normal_()
    after = method(batch, at)
    assert after.metrics["loss_cls"] != before
    assert torch.equal(after.sums["cls"], made()(batch, at).sums["cls"])


def test_mask_token_starts_at_zero_is_decayed_and_the_students_alone():
    method = made()
    assert torch.equal(method.student.vit.mask_token, torch.zeros(1, 1, 16))
    assert not any("mask_token" in name for name in method.teacher.state_dict())
    assert "masked_embed" not in "".join(to_official(method.state_dict())["teacher"])


def test_decay_groups_take_tokens_positions_and_prototypes():
    undecayed, decayed = made().parameter_groups()
    for name in ("cls_token", "pos_embed", "mask_token"):
        assert f"student.vit.{name}" in decayed.names
    for part in ("original0", "original1"):  # weight_g, which is trained here, and weight_v
        assert f"student.head.last_layer.parametrizations.weight.{part}" in decayed.names
    assert all(name.startswith("student.") for name in undecayed.names + decayed.names)
    frozen = made(dataclasses.replace(SMALL, norm_last_layer=True)).parameter_groups()
    assert not any("original0" in name for group in frozen for name in group.names)


def test_default_views_are_the_recipes():
    assert (GLOBAL_1.blur.p, GLOBAL_2.blur.p, LOCAL.blur.p) == (1.0, 0.1, 0.5)
    assert (GLOBAL_1.solarize, GLOBAL_2.solarize, LOCAL.solarize) == (0.0, 0.2, 0.0)
    for view in IBOTConfig().views:
        jitter = view.jitter
        assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (0.4, 0.4, 0.2, 0.1)
        assert (jitter.p, view.gray, view.flip, view.blur.radius) == (0.8, 0.2, 0.5, (0.1, 2.0))
    assert len(expand(IBOTConfig().views)) == 12
    assert IBOTConfig().masks == (MASK, MASK)
    assert MASK.ratios == ((0.0, 0.0), (0.3, 0.2))


def test_multi_crop_positions_follow_the_factor_rule():
    table = torch.randn(1, 197, 8)
    factor, size = (resize_pos_embed(table, (14, 14), (6, 6), rule) for rule in ("factor", "size"))
    assert (factor - size).abs().max() > 0.1
    assert IBOTConfig().vit.pos_resize == "factor"
    vit = made().teacher.vit
    torch.testing.assert_close(vit.positions((2, 2)), resize_pos_embed(vit.pos_embed, (4, 4), (2, 2), "factor"))


# --- a step ------------------------------------------------------------------------------------------


def test_weight_decay_rises_for_decayed_groups_alone():
    method, config = made(), SMALL
    optimizer = build_optimizer(method.parameter_groups(), OPTIM)
    seen = []
    for step in (0, 6):
        update(method, optimizer, [batch_for()], Progress(step, 12, 4.0), run_config(config), CPU)
        seen.append({group["decay"]: group["weight_decay"] for group in optimizer.param_groups})
    assert [s[True] for s in seen] == pytest.approx([0.04, 0.22])
    assert [s[False] for s in seen] == [0.0, 0.0]


def test_clipping_is_by_tensor():
    big, small = (torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(2))
    big.grad, small.grad = torch.full((2, 2), 10.0), torch.full((2, 2), 0.0707)
    clip_gradients([big, small], OPTIM)
    assert big.grad.norm().item() == pytest.approx(3.0, abs=1e-5)
    assert torch.equal(small.grad, torch.full((2, 2), 0.0707))


def test_teacher_follows_the_stepped_student_and_has_no_gradient():
    method = made()
    before = {name: p.clone() for name, p in method.teacher.named_parameters()}
    stepped(method, SMALL, 1)
    student = dict(method.student.named_parameters())
    for name, p in method.teacher.named_parameters():
        torch.testing.assert_close(p, 0.9 * before[name] + 0.1 * student[name].detach(), atol=1e-7, rtol=1e-6)
        assert p.grad is None
        assert not p.requires_grad


def test_teacher_momentum_rises_every_step():
    method = made()
    student, teacher = method.student.vit.cls_token, method.teacher.vit.cls_token
    student.data.fill_(1.0)
    teacher.data.fill_(0.0)
    method.after_step(Progress(6, 12, 4.0), method(batch_for(), Progress(6, 12, 4.0)).sums)
    assert teacher.flatten()[0].item() == pytest.approx(1 - 0.95, abs=1e-6)  # half way from 0.9 to 1


def test_a_teacher_of_the_previous_epoch_is_the_student_s_copy_at_its_end_and_stays():
    config = dataclasses.replace(SMALL, teacher_every=1.5)
    method, copied = made(config), []
    sums = method(batch_for(), Progress(0, 12, 4.0)).sums
    teacher = method.teacher.vit.cls_token
    for step in range(13):
        method.student.vit.cls_token.data.fill_(step)
        before = teacher.clone()
        method.after_step(Progress(step, 13, 4.0), sums)
        if teacher.flatten()[0] == step and not torch.equal(teacher, before):
            copied.append(step + 1)
        else:
            assert torch.equal(teacher, before)
    assert copied == [6, 12]  # updates after which one and a half epochs of four have passed


@pytest.mark.parametrize("shared", [True, False])
def test_prototypes_stay_as_they_began_in_the_first_epoch(shared):
    config = dataclasses.replace(SMALL, shared_head=shared)
    method = made(config)
    before = [p.clone() for p in method.student.head.last()]
    assert len(before) == (2 if shared else 4)
    stepped(method, config, 4)  # one epoch: neither moved nor decayed
    assert all(torch.equal(p, b) for p, b in zip(method.student.head.last(), before, strict=True))
    stepped(method, config, 1, start=4)
    assert not any(torch.equal(p, b) for p, b in zip(method.student.head.last(), before, strict=True))


def test_rest_and_warm_up_are_parts_of_a_short_run_and_epochs_of_a_long_one():
    config = dataclasses.replace(SMALL, freeze_fraction=0.25, warmup_temperature_fraction=0.5)
    assert [config.lengths(epochs) for epochs in (2.0, 4.0, 100.0)] == [(1.0, 0.5), (2.0, 1.0), (30, 1.0)]
    assert [config.temperatures(Progress(step, 8, 2.0))[0] for step in range(8)] == [0.04] * 2 + [0.07] * 6
    method = made(config)
    for step, rests in ((1, True), (2, False)):  # of two epochs of four updates: a quarter is two updates
        for p in method.student.parameters():
            p.grad = torch.ones_like(p)
        method.before_step(Progress(step, 8, 4.0))
        assert [p.grad is None for p in method.student.head.last()] == [rests] * 2


def test_before_step_drops_the_gradients_of_both_last_layers():
    method = made(dataclasses.replace(SMALL, shared_head=False))
    for p in method.student.parameters():
        p.grad = torch.ones_like(p)
    method.before_step(Progress(3, 12, 4.0))
    dropped = {name for name, p in method.student.named_parameters() if p.grad is None}
    layers = ("last_layer", "patch_layer")
    assert dropped == {f"head.{layer}.parametrizations.weight.original{i}" for layer in layers for i in (0, 1)}


def test_centers_are_used_before_they_move_and_belong_to_the_state():
    method, batch = made(), batch_for()
    fresh = method(batch, Progress(0, 12, 4.0))
    result = stepped(method, SMALL, 1)
    torch.testing.assert_close(result.loss, fresh.loss.detach())
    torch.testing.assert_close(method.center, 0.1 * fresh.sums["cls"] / 8)
    torch.testing.assert_close(method.patch_center, 0.1 * fresh.sums["patch"] / 8)
    assert {"center", "patch_center"} < method.state_dict().keys()


@pytest.mark.parametrize("config", [SMALL, DINO], ids=["ibot", "dino"])
def test_sums_of_two_halves_are_those_of_the_whole(config):
    method, whole, at = made(config), batch_for(config), Progress(0, 12, 4.0)

    def half(rows):
        masks = tuple(m[rows] for m in whole.masks)
        hidden = tuple(m.flatten().nonzero().flatten() for m in masks)
        return whole._replace(views=tuple(v[rows] for v in whole.views), masks=masks, hidden=hidden)

    outs = [method(half(rows), at) for rows in (slice(0, 2), slice(2, 4))]
    full = method(whole, at)
    for name, value in full.sums.items():
        torch.testing.assert_close(outs[0].sums[name] + outs[1].sums[name], value, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close((outs[0].loss + outs[1].loss) / 2, full.loss)


def test_going_on_from_a_state_is_exact():
    whole = made()
    optimizer = build_optimizer(whole.parameter_groups(), OPTIM)
    other = made(seed=1)
    again = build_optimizer(other.parameter_groups(), OPTIM)
    for step in range(6):
        if step == 3:
            other.load_state_dict(whole.state_dict())
            again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        update(whole, optimizer, [batch_for()], Progress(step, 6, 2.0), run_config(), CPU)
    for step in range(3, 6):
        update(other, again, [batch_for()], Progress(step, 6, 2.0), run_config(), CPU)
    for name, value in whole.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_loss_falls_on_images_seen_again():
    method = made(dataclasses.replace(SMALL, freeze_last_layer=0.0))
    losses = [stepped(method, SMALL, 1, of=60, start=step).loss.item() for step in range(40)]
    assert losses[-1] < losses[0] - 0.3


# --- DINO --------------------------------------------------------------------------------------------


def test_dino_is_ibot_without_masks_and_patches():
    method, batch = made(DINO), batch_for(DINO)
    assert DINO.grids() == ()
    assert method.student.vit.mask_token is None
    out = method(batch, Progress(0, 12, 4.0))
    assert out.loss.detach() == out.metrics["loss_cls"]
    assert not any("patch" in name for name in (*out.metrics, *out.sums))
    out.loss.backward()
    assert all(p.grad is not None for p in method.student.parameters())
    stepped(method, DINO, 2)
    assert torch.equal(method.patch_center, torch.zeros(24))


# --- options -----------------------------------------------------------------------------------------


def test_unshared_students_and_their_teachers_start_from_the_layer_that_leads_them():
    method = made(dataclasses.replace(SMALL, shared_head=False, shared_head_teacher=True))
    assert method.teacher.head.patch_layer is None
    assert torch.equal(method.teacher.head.last_layer.weight, method.student.head.last_layer.weight)
    method = made(dataclasses.replace(SMALL, shared_head_teacher=False))
    assert torch.equal(method.teacher.head.patch_layer.weight, method.student.head.last_layer.weight)


def test_centers_and_losses_stay_fp32_under_autocast():
    method, batch = made(), batch_for()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = method(batch, Progress(0, 9, 1.0))
    assert {v.dtype for v in (*out.metrics.values(), *out.sums.values(), out.loss)} == {torch.float32}
    exact = method(batch, Progress(0, 9, 1.0))
    torch.testing.assert_close(out.loss, exact.loss, rtol=0.02, atol=0.02)
    torch.testing.assert_close(out.sums["patch"], exact.sums["patch"], rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": (MASK,)}, "1 masks and 5 crops for 2 global"),
        ({"views": (View(16),), "globals": 1, "masks": ()}, "no other view"),
        ({"views": (View(16), View(24))}, r"\(24, 24\) px"),
        ({"views": (View(16), View(16), View(10))}, "does not divide"),
        ({"shared_head": False, "shared_head_teacher": True, "patch_prototypes": 9}, "9 patch prototypes"),
    ],
)
def test_configs_that_cannot_train_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change).build()


def test_config_survives_json():
    for config in (IBOTConfig(), SMALL, DINO):
        assert configs.from_json(json.loads(json.dumps(configs.to_json(config)))) == config


# --- several processes -------------------------------------------------------------------------------


def halves(rank, folder):
    """One of two processes: two steps on half of the batch, by DDP and by FSDP2, and what they left behind."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    world = World(rank, 2, torch.device("cpu"))
    for how in ("ddp", "fsdp"):
        method = made(seed=rank)  # rank 0's weights are everybody's
        engine = wrap(method, world, how)
        optimizer = build_optimizer(method.parameter_groups(), OPTIM)
        for step in range(4, 6):  # past the first epoch, so that prototypes move as well
            full, rows = batch_for(), slice(2 * rank, 2 * rank + 2)
            masks = tuple(m[rows] for m in full.masks)
            hidden = tuple(m.flatten().nonzero().flatten() for m in masks)
            half = full._replace(views=tuple(v[rows] for v in full.views), masks=masks, hidden=hidden)
            update(engine, optimizer, [half], Progress(step, 12, 4.0), run_config(), world)
        state = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in method.state_dict().items()}
        if rank == 0:
            torch.save(state, f"{folder}/{how}.pt")
    dist.barrier()  # gloo aborts a process that leaves while the other still talks to it
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_leave_the_state_of_one(tmp_path):
    torch.multiprocessing.spawn(halves, (str(tmp_path),), nprocs=2)
    method = made()
    optimizer = build_optimizer(method.parameter_groups(), OPTIM)
    for step in range(4, 6):
        update(method, optimizer, [batch_for()], Progress(step, 12, 4.0), run_config(), CPU)
    for how in ("ddp", "fsdp"):
        two = torch.load(tmp_path / f"{how}.pt")
        for name, value in method.state_dict().items():
            # the gradient of a key bias is rounding noise, which Adam turns into steps of its own
            if not name.endswith("qkv.bias"):
                torch.testing.assert_close(two[name], value, atol=1e-6, rtol=1e-5)
