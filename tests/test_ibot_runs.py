"""Whole runs of iBOT: collapse and its warning, what is logged and drawn, going on, two processes."""

import dataclasses
import math

import pytest
import torch
import toys
from ibot_toys import DINO, SMALL
from test_show import size_of
from toys import Images, same

from unmask import checkpoint
from unmask.methods.distill import INFORMATION, WINDOW
from unmask.methods.ibot import IBOTConfig
from unmask.optim import build_optimizer
from unmask.run import Run
from unmask.show import curves

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
    assert last["entropy"] == pytest.approx(0.0 if method is UNCENTERED else most, abs=0.05)  # fidelity 8.2, B6
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
    drawn = dict(curves.health(run.metrics()))
    for name in HEALTH:
        assert drawn[name] == [f"{part}{name}" for part in parts]
    assert drawn["parts of the loss"] == [f"loss_{name}" for name in (("cls", "patch") if method.masks else ("cls",))]
    plain = [{name: line[name] for name in ("step", "images", "loss", "lr")} for line in run.metrics()]
    tall, short = (size_of(curves.draw(lines, tmp_path / "c.png"))[1] for lines in (run.metrics(), plain))
    assert tall > short + 5 * 200  # five panels of health, an inch each


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


def state(path, step):
    run = Run(path)
    method = run.config.method.build()
    optimizer = build_optimizer(method.parameter_groups(), run.config.optim)
    checkpoint.load(path, step, method, optimizer)
    return {"method": dict(method.state_dict()), "optimizer": checkpoint.optimizer_state(optimizer)}
