"""Schedules against the official helpers: MAE's lr_sched and the cosine table of DINO, iBOT and BEiT."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from unmask.schedules import Constant, Progress, StepCosine, WarmupCosine

GOLDEN = Path(__file__).parent / "golden"


def at(epoch, epochs=800, per_epoch=100.0):
    return Progress(round(epoch * per_epoch), round(epochs * per_epoch), per_epoch)


@pytest.mark.parametrize(("epoch", "lr"), [(0, 0.0), (20, 1.2e-3), (40, 2.4e-3), (420, 1.2e-3), (800, 0.0)])
def test_golden_maes_learning_rate_at_batch_4096(epoch, lr):
    assert WarmupCosine(1.5e-4 * 4096 / 256, warmup_epochs=40)(at(epoch)) == pytest.approx(lr, abs=1e-12)


def test_golden_maes_fine_tuning_learning_rates():
    golden = load_file(GOLDEN / "mae_finetune_param_groups.safetensors")
    config = json.loads((GOLDEN / "mae_finetune_param_groups.json").read_text())["config"]
    schedule = WarmupCosine(config["base_lr"], config["warmup_epochs"], config["min_lr"])
    per_epoch = 1000.0
    for epoch, lr in zip(golden["outputs/sched_epochs"], golden["outputs/sched_base_lr"], strict=True):
        now = at(float(epoch), config["epochs"], per_epoch)
        assert schedule(now) == pytest.approx(float(lr), rel=1e-6, abs=1e-12), float(epoch)


@pytest.mark.parametrize(("step", "value"), [(0, 0.0), (19, 1.0), (20, 1.0), (99, 0.100347)])
def test_golden_ibots_table_has_its_peak_twice_and_never_ends(step, value):
    schedule = StepCosine(1.0, warmup_epochs=2, final=0.1)
    assert schedule(Progress(step, 100, 10)) == pytest.approx(value, abs=5e-7)


@pytest.mark.parametrize("case", ["beit_param_groups_and_schedule", "ibot_utils"])
def test_golden_cosine_tables(case):
    golden = load_file(GOLDEN / f"{case}.safetensors")
    for i, sched in enumerate(json.loads((GOLDEN / f"{case}.json").read_text())["config"]["sched"]):
        base, final, epochs, per_epoch, warmup, start = sched
        schedule = StepCosine(base, warmup, final, start)
        ours = [schedule(Progress(step, epochs * per_epoch, per_epoch)) for step in range(epochs * per_epoch)]
        np.testing.assert_allclose(ours, golden[f"outputs/cosine_{i}"].numpy(), rtol=1e-12, atol=1e-18)


@given(st.integers(0, 10**9), st.floats(-1, 1))
def test_constant_is_constant(step, value):
    assert Constant(value)(Progress(step, 10**9, 10.0)) == value


@given(
    st.sampled_from([WarmupCosine, StepCosine]),
    st.integers(1, 500),
    st.floats(0.1, 50),
    st.floats(0, 10),
    st.floats(0, 1),
)
def test_a_warm_cosine_stays_between_its_ends_even_past_the_last_step(kind, steps, per_epoch, warmup, final):
    schedule = kind(1.0, warmup, final)
    for step in range(steps + 5):
        assert -1e-12 <= schedule(Progress(step, steps, per_epoch)) <= 1 + 1e-12


def test_progress_counts_epochs_in_fractions():
    assert (at(1.5).epoch, at(0).epochs) == (1.5, 800)
    assert Progress(step=8, steps=16, steps_per_epoch=0.5).epoch == 16  # a batch of two data sets
