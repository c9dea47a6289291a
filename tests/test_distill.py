"""What DINO and iBOT share: heads, temperatures, KoLeo, and the health of a teacher."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from ibot_toys import SMALL, batch_for, made

from unmask.methods.base import Progress
from unmask.methods.distill import WINDOW, collapse_warning, health, koleo, observed, warmed_up
from unmask.methods.ibot_head import Head
from unmask.schedules import StepCosine


def test_raw_logits_of_a_fresh_head_are_cosines():
    torch.manual_seed(0)
    head = Head(16, 24, hidden=20, bottleneck=8)
    z = head.embed(100 * torch.randn(50, 16))
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(50))
    assert head.cls(z).abs().max() <= 1 + 1e-6
    length, direction = (
        head.last_layer.parametrizations.weight.original0,
        head.last_layer.parametrizations.weight.original1,
    )
    assert torch.equal(length, torch.ones(24, 1))
    assert not length.requires_grad
    torch.testing.assert_close(head.cls(z), z @ F.normalize(direction, dim=1).T)


@pytest.mark.parametrize(
    ("prototypes", "width", "count"), [(8192, 384, 7_614_720), (8192, 768, 8_401_152), (8192, 1024, 8_925_440)]
)
def test_heads_have_the_official_parameter_counts(prototypes, width, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in Head(width, prototypes).parameters()) == count


@pytest.mark.parametrize("norm", ["bn", "ln"])
def test_normalized_heads_share_one_norm_and_score_any_shape(norm):
    head = Head(6, 5, 7, hidden=4, bottleneck=3, norm=norm)
    assert head.mlp[1] is head.mlp[4]
    cls, patches = head(torch.randn(3, 4, 6))
    assert (cls.shape, patches.shape) == ((3, 5), (3, 3, 7))


def test_a_head_without_layers_is_refused():
    with pytest.raises(ValueError, match="0 layers"):
        Head(4, 5, layers=0)


def test_teacher_temperature_warms_up_by_whole_epochs():
    values = [warmed_up(0.04, 0.07, 30, Progress(epoch * 10 + 9, 8000, 10.0)) for epoch in range(40)]
    assert values[:2] == pytest.approx([0.04, 0.0410345], abs=1e-7)
    assert values[29:] == pytest.approx([0.07] * 11)


@pytest.mark.parametrize(("epochs", "last"), [(0.5, 0.04), (1, 0.04), (3, 0.07), (12, 0.07)])
def test_a_warm_up_longer_than_the_run_is_shortened_to_it(epochs, last):
    steps = round(epochs * 10)
    values = [warmed_up(0.04, 0.07, 30, Progress(step, steps, 10.0)) for step in range(steps)]
    assert values[0] == 0.04
    assert values[-1] == pytest.approx(last)
    assert values == sorted(values)


def test_patch_temperature_waits_for_the_masks_and_they_for_it():
    config = dataclasses.replace(SMALL, patch_start_epoch=2, warmup_temperature_epochs=2)
    temperatures = [config.temperatures(Progress(epoch, 6, 1.0)) for epoch in range(6)]
    assert [t for t, _ in temperatures] == pytest.approx([0.04, *[0.07] * 5])
    assert [t for _, t in temperatures] == pytest.approx([0.04, 0.04, 0.04, 0.07, 0.07, 0.07])
    method, batch = made(config), batch_for(config)
    losses = [method(batch, Progress(epoch, 6, 1.0)).metrics["loss_patch"] for epoch in range(3)]
    assert losses[0] == losses[1] == 0
    assert losses[2] > 0


def test_the_helper_schedule_has_the_official_numbers():
    schedule = StepCosine(1.0, 2.0, 0.1)
    values = {it: schedule(Progress(it, 100, 10.0)) for it in (0, 19, 20, 99)}
    assert values == pytest.approx({0: 0.0, 19: 1.0, 20: 1.0, 99: 0.100347}, abs=1e-6)


def test_koleo_pushes_the_nearest_apart():
    near = torch.tensor([[1.0, 0.0], [1.0, 0.01], [-1.0, 0.0]])
    far = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert koleo(near) > koleo(far)
    assert koleo(far).item() == pytest.approx(-math.log(math.sqrt(2)), abs=1e-6)
    config = dataclasses.replace(SMALL, koleo_weight=0.1)
    out, plain = (made(c)(batch_for(), Progress(0, 9, 1.0)) for c in (config, SMALL))
    torch.testing.assert_close(out.loss, plain.loss + 0.1 * out.metrics["loss_koleo"])


def test_health_tells_sure_from_undecided_and_varied_from_constant():
    varied = torch.eye(4)

    def logits(probabilities):
        return 5 + probabilities.clamp(min=1e-30).log()

    seen = observed(varied, logits(varied), varied.roll(1, 0), "x_")
    numbers = health(seen, {"x_": torch.tensor([3.0, 4.0, 0.0, 0.0])})
    assert {k: v.item() for k, v in numbers.items()} == pytest.approx(
        {"x_entropy": 0.0, "x_kl_uniform": 0.0, "x_usage": 1.0, "x_agreement": 0.0, "x_center_norm": 5.0}, abs=1e-6
    )
    constant = health(observed(varied[:1].expand(4, 4), logits(varied[:1].expand(4, 4)), varied), {"": torch.zeros(4)})
    assert constant["kl_uniform"].item() == pytest.approx(math.log(4))
    assert (constant["usage"].item(), constant["agreement"].item()) == (0.25, 0.25)
    undecided = health(observed(torch.full((4, 4), 0.25), torch.full((4, 4), 7.0), varied), {"": torch.zeros(4)})
    assert undecided["entropy"].item() == pytest.approx(math.log(4))


def test_health_is_of_the_whole_step_however_many_micro_batches_it_has():
    at, whole = Progress(4, 12, 4.0), batch_for()
    ours = made()
    expected = ours.after_step(at, ours(whole, at).sums)
    method, sums = made(), {}
    for i in range(4):  # one image each, some of them without hidden patches
        masks = tuple(mask[i : i + 1] for mask in whole.masks)
        one = whole._replace(
            views=tuple(view[i : i + 1] for view in whole.views),
            masks=masks,
            hidden=tuple(mask.flatten().nonzero().flatten() for mask in masks),
        )
        for name, value in method(one, at).sums.items():
            sums[name] = sums[name] + value if name in sums else value
    found = method.after_step(at, sums)
    assert {k: v.item() for k, v in found.items()} == pytest.approx(
        {k: v.item() for k, v in expected.items()}, abs=1e-5
    )
    none = health(observed(torch.ones(0, 4), torch.ones(0, 4), torch.ones(0, 4)), {"": torch.zeros(4)})
    assert not any(none.values())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_agreement_is_with_another_view_never_with_the_same(count):
    views = dataclasses.replace(SMALL.views[0], count=count), dataclasses.replace(SMALL.views[2], count=1)
    method = made(dataclasses.replace(SMALL, views=views, globals=count, masks=()))
    says = torch.eye(24)[: count + 1, None]  # each view something else, of one image
    other = says[:count].roll(1, 0) if count > 1 else says[1:]
    none, at = torch.zeros(0, 24), Progress(0, 9, 1.0)
    for teacher, agreed in ((says[:count], 0.0), (other, 1.0)):
        _, _, seen = method.loss((says, none), (teacher, none), torch.zeros(0), at)
        assert (seen["agreed"] / seen["samples"]).item() == agreed


def test_collapse_is_named_with_its_cure_in_both_forms_and_health_is_not():
    k = 1024
    most = math.log(k)
    uniform = [{"entropy": most - 1e-3, "kl_uniform": 1e-4}] * WINDOW
    single = [{"entropy": 0.01, "kl_uniform": most - 0.02}] * WINDOW
    well = [{"entropy": 3.0, "kl_uniform": 2.0}] * WINDOW
    assert "collapse" in collapse_warning(uniform, k, k)
    assert "--method.teacher-temperature" in collapse_warning(uniform, k, k)
    assert "collapse to one prototype" in collapse_warning(single, k, k)
    assert "--method.center-momentum" in collapse_warning(single, k, k)
    patches = [{f"patch_{name}": value for name, value in line.items()} for line in uniform]
    both = [a | b | {"loss_patch": 1.0} for a, b in zip(well, patches, strict=True)]
    assert "every patch gets the same" in collapse_warning(both, k, k)
    assert "--method.patch-teacher-temperature" in collapse_warning(both, k, k)
    assert collapse_warning([line | {"loss_patch": 0.0} for line in both], k, k) is None  # nothing was hidden
    assert collapse_warning(well, k, k) is None
    assert collapse_warning(uniform[1:], k, k) is None
    assert collapse_warning(uniform[1:] + well[:1], k, k) is None


def test_metrics_are_detached_and_named():
    method, at = made(), Progress(0, 9, 1.0)
    out = method(batch_for(), at)
    metrics = out.metrics | method.after_step(at, out.sums)
    parts = ("entropy", "kl_uniform", "usage", "agreement", "center_norm")
    assert set(metrics) == {"loss_cls", "loss_patch", *parts, *(f"patch_{part}" for part in parts)}
    assert not any(value.requires_grad for value in metrics.values())
