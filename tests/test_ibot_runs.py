"""Whole runs of iBOT: collapse and its warning, what is logged and drawn, going on, two processes."""

import dataclasses
import math

import pytest
import torch
import toys
from cli_toys import SHORT, pictures, unmask
from ibot_toys import CPU, DINO, OPTIM, SMALL, batch_for, made, run_config
from test_show import size_of
from toys import Images, same

from unmask import checkpoint, parallel
from unmask.methods.base import Progress
from unmask.methods.distill import INFORMATION, WINDOW
from unmask.methods.ibot import IBOTConfig
from unmask.optim import build_optimizer
from unmask.run import Run
from unmask.show import curves
from unmask.show.panels import panels
from unmask.step import update
from unmask.testing import check_method
from unmask.testing.processes import on_processes
from unmask.views import View

AT = Progress(0, 12, 4.0)
HEALTH = ("entropy", "kl_uniform", "usage", "agreement", "center_norm")


def trained(path, method: IBOTConfig, **changes) -> Run:
    shape = {"steps": 60, "base_lr": 3e-3, "warmup_epochs": 2.0, "clip": 3.0, "clip_by": "tensor"}
    return toys.run(path, source=Images(48), method=method, **(shape | changes))


def temperatures(config: IBOTConfig, tau: float) -> IBOTConfig:
    names = [f"{part}{when}_temperature" for part in ("", "patch_") for when in ("warmup", "teacher")]
    return dataclasses.replace(config, **dict.fromkeys(names, tau))


HEALTHY = dataclasses.replace(temperatures(SMALL, 0.04), head_std=0.2, freeze_last_layer=0.0, koleo_weight=0.1)
UNCENTERED = dataclasses.replace(SMALL, center_momentum=1.0, patch_center_momentum=1.0)
UNSHARPENED = temperatures(SMALL, 1.0)


# --- collapse ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "form", "cure"),
    [
        (UNCENTERED, "collapse to one prototype", "--method.center-momentum (0.9)"),
        (UNSHARPENED, "collapse to the uniform distribution", "--method.teacher-temperature (0.04"),
    ],
    ids=["centering off", "sharpening off"],
)
def test_a_run_that_collapses_says_so_with_the_cure_before_it_ends(method, form, cure, tmp_path):
    run = trained(tmp_path, method, steps=40)
    said = [line for line in (tmp_path / "log.txt").read_text().splitlines() if ": collapse" in line]
    assert len(said) == 1
    assert form in said[0]
    assert cure in said[0]
    assert f"step {12 + WINDOW}:" in said[0]  # ten lines after the rate's warm-up of two epochs
    most, last = math.log(method.prototypes), run.metrics()[-1]
    assert last["entropy"] == pytest.approx(
        0.0 if method is UNCENTERED else most, abs=0.05
    )  # one prototype, or all alike
    assert last["usage"] < 0.2


def test_a_run_that_learns_is_not_warned(tmp_path):
    run = trained(tmp_path, HEALTHY)
    assert ": collapse" not in (tmp_path / "log.txt").read_text()
    lines = run.metrics()[-WINDOW:]
    assert max(math.log(24) - line["entropy"] - line["kl_uniform"] for line in lines) > INFORMATION


# --- what is logged and drawn ------------------------------------------------------------------------


@pytest.mark.parametrize("method", [SMALL, DINO], ids=["ibot", "dino"])
def test_health_is_logged_at_every_line_and_drawn(method, tmp_path):
    run = trained(tmp_path / "run", method, steps=3)
    parts = ("", "patch_") if method.masks else ("",)
    for line in run.metrics():
        assert line.keys() >= {f"{part}{name}" for part in parts for name in HEALTH}
    drawn = dict(panels(run.metrics()))
    for name in HEALTH:
        assert [f"{part}{name}" for part in parts] in drawn.values()
    assert drawn["parts of the loss"] == [f"loss_{name}" for name in (("cls", "patch") if method.masks else ("cls",))]
    plain = [{name: line[name] for name in ("step", "images", "loss", "lr")} for line in run.metrics()]
    tall, short = (size_of(curves.draw(lines, tmp_path / "c.png"))[1] for lines in (run.metrics(), plain))
    assert tall > short + 5 * 200  # five panels of health, an inch each


def test_no_line_of_a_panel_is_cut_off(monkeypatch, tmp_path):
    lines = [{"step": s, "entropy": 1.0 + s, "patch_entropy": 9.0 + s, "lr": 0.1, "below": -s} for s in range(5)]
    figures = []
    monkeypatch.setattr(curves, "save", lambda figure, path: figures.append(figure) or path)
    curves.draw(lines, tmp_path / "c.png")
    for axes in figures[0].axes:
        low, high = axes.get_ylim()
        for line in axes.get_lines():
            assert low <= min(line.get_ydata())
            assert max(line.get_ydata()) <= high


def test_teacher_and_student_are_evaluated_side_by_side(tmp_path):
    seen = []

    def evaluate(backbone):
        seen.append(backbone)
        return {"eval/knn/cls": float(len(seen))}

    run = trained(tmp_path, SMALL, steps=4, eval_every="2", evaluate=evaluate)
    scores = [{k: v for k, v in line.items() if k.startswith("eval/")} for line in run.metrics()]
    assert [line for line in scores if line] == [
        {"eval/knn/cls": 1.0, "eval/knn/cls/student": 2.0},
        {"eval/knn/cls": 3.0, "eval/knn/cls/student": 4.0},
    ]
    assert seen[0].mask_token is None  # the teacher's
    assert seen[1].mask_token is not None
    panels = curves.draw(run.metrics(), tmp_path / "c.png")
    assert min(size_of(panels)) > 600


# --- going on, and several processes -----------------------------------------------------------------


def test_going_on_restores_teacher_centers_and_schedules_bit_for_bit(tmp_path):
    moving = dataclasses.replace(SMALL, warmup_temperature_epochs=2, freeze_last_layer=0.5)
    shape = {"steps": 14, "warmup_epochs": 1.0, "weight_decay": 0.04, "weight_decay_end": 0.4, "schedule": "step"}
    trained(tmp_path / "whole", moving, **shape)
    trained(tmp_path / "parts", moving, **shape, save_every="7")
    checkpoint.remove(tmp_path / "parts", 14)
    torch.manual_seed(99)
    trained(tmp_path / "parts", moving, **shape)
    whole, parts = state(tmp_path / "whole", 14), state(tmp_path / "parts", 14)
    assert {"center", "patch_center", "teacher.vit.cls_token"} < whole["method"].keys()
    assert whole["method"]["center"].norm() > 0
    assert same(whole, parts)
    losses = [[line["loss"] for line in Run(tmp_path / name).metrics()] for name in ("whole", "parts")]
    assert losses[0] == losses[1]


def sharded(world):
    """One step by FSDP2 on half of the batch: are teacher and student cut alike, and what is left of both."""
    method = made(seed=world.rank)  # rank 0's weights are everybody's
    engine = parallel.wrap(method, world, "fsdp")
    shapes = [{n: p.to_local().shape for n, p in who.named_parameters()} for who in (method.student, method.teacher)]
    alike = all(shape == shapes[0][name] for name, shape in shapes[1].items())
    before = {name: p.full_tensor().clone() for name, p in method.teacher.named_parameters()}
    batch, rows = batch_for(), slice(2 * world.rank, 2 * world.rank + 2)
    masks = tuple(mask[rows] for mask in batch.masks)
    hidden = tuple(mask.flatten().nonzero().flatten() for mask in masks)
    half = batch._replace(views=tuple(view[rows] for view in batch.views), masks=masks, hidden=hidden)
    update(engine, build_optimizer(method.parameter_groups(), OPTIM), [half], AT, run_config(), world)
    student = {name: p.full_tensor().detach() for name, p in method.student.named_parameters()}
    off = max(
        float((p.full_tensor() - (0.9 * before[name] + 0.1 * student[name])).abs().max())
        for name, p in method.teacher.named_parameters()
    )
    cut = sum(p.to_local().numel() for p in method.teacher.parameters()) / sum(b.numel() for b in before.values())
    return alike, cut, off, {name: getattr(method, name).numpy() for name in ("center", "patch_center")}


def test_student_and_teacher_are_sharded_alike_and_the_teacher_is_the_unsharded_average():
    results = on_processes(sharded, 2)
    method = made()
    update(method, build_optimizer(method.parameter_groups(), OPTIM), [batch_for()], AT, run_config(), CPU)
    for alike, cut, off, centers in results:
        assert alike
        assert 0.3 < cut < 0.7  # each rank holds half
        assert off < 1e-6
        for name, center in centers.items():
            torch.testing.assert_close(torch.from_numpy(center), getattr(method, name), atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", [SMALL, DINO], ids=["ibot", "dino"])
def test_ibot_and_dino_keep_the_contract_of_a_method(method):
    # images can be memorized only where the targets rest: no average, no centers, one temperature
    still = {"momentum": 1.0, "center_momentum": 1.0, "patch_center_momentum": 1.0, "freeze_last_layer": 0.0}
    method = dataclasses.replace(temperatures(method, 0.02), **still)
    wide = dataclasses.replace(method, vit=dataclasses.replace(method.vit, image_size=(16, 24)))
    other = dataclasses.replace(wide, views=(View((16, 24)), View((16, 24)), View(8, count=3)))
    check_method(method, other=other, lr=1e-2)


# --- before and after --------------------------------------------------------------------------------


def test_settings_that_suit_longer_runs_are_said_before_the_first_step():
    assert IBOTConfig().traps(800.0) == []
    short = dataclasses.replace(IBOTConfig(), shared_head=False, shared_head_teacher=True).traps(0.8)
    assert [line.partition(":")[0].split()[1] for line in short] == ["teacher's", "prototypes", "student's"]
    assert "shortened" in short[0]
    assert "--method.freeze-last-layer to 0.04" in short[1]
    assert "--method.shared-head-teacher" in short[2]
    (late,) = dataclasses.replace(IBOTConfig(), patch_start_epoch=50).traps(40.0)
    assert "no patch loss at all" in late


def test_the_command_line_logs_student_and_teacher_says_the_traps_and_draws_all(tmp_path):
    photos, run = pictures(tmp_path / "photos", 24, classes="abc"), tmp_path / "run"
    words = ("--eval-every", "3", "--method.freeze-last-layer", "9")
    said = unmask("pretrain", "ibot-nano", photos, "--out", run, *SHORT, *words)
    assert said.code == 0, said.err
    assert "the prototypes stay frozen for 9 epochs" in said.err
    last = Run(run).metrics()[-1]
    for protocol in ("knn", "linear"):
        for pool in ("cls", "mean"):
            assert {f"eval/{protocol}/{pool}", f"eval/{protocol}/{pool}/student"} <= last.keys()
    drawn = size_of(run / "figures" / "curves.png")
    assert unmask("show", run, "curves", "--out", tmp_path / "again.png").code == 0
    assert size_of(tmp_path / "again.png") == drawn  # with all of the health


def state(path, step):
    run = Run(path)
    method = run.config.method.build()
    optimizer = build_optimizer(method.parameter_groups(), run.config.optim)
    checkpoint.load(path, step, method, optimizer)
    return {"method": dict(method.state_dict()), "optimizer": checkpoint.optimizer_state(optimizer)}
