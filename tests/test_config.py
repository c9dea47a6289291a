"""Configs: to JSON and back without loss, intervals, the papers' arithmetic, and what a file may not do."""

import dataclasses
import json
import sys
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.config import (
    SPEED_FIELDS,
    DataConfig,
    MethodConfig,
    OptimConfig,
    RunConfig,
    differences,
    from_json,
    parse_interval,
    to_json,
)
from unmask.masks import BlockMask, MaskPolicy, RandomMask, ScatterMask
from unmask.schedules import Constant, StepCosine, WarmupCosine


@dataclass(frozen=True, kw_only=True)
class ToyConfig(MethodConfig):
    width: int
    masks: tuple[MaskPolicy, ...] = (RandomMask(),)
    sizes: tuple[tuple[int, float], ...] = ()


fractions = st.floats(0, 0.5)
policies = st.one_of(
    st.builds(RandomMask, fractions),
    st.builds(ScatterMask, st.tuples(st.tuples(st.just(0.5), fractions))),
    st.builds(BlockMask, st.tuples(st.tuples(st.just(0.5), fractions)), st.integers(0, 75) | st.none()),
)
runs = st.builds(
    RunConfig,
    recipe=st.text(),
    method=st.builds(ToyConfig, width=st.integers(), masks=st.lists(policies, max_size=3).map(tuple)),
    data=st.builds(DataConfig, range=st.none() | st.tuples(fractions, fractions)),
    optim=st.builds(OptimConfig, clip=st.none() | fractions),
    epochs=st.none() | fractions,
)


@given(runs)
def test_json_and_back_is_the_same_config(run):
    assert from_json(json.loads(json.dumps(to_json(run)))) == run


def test_json_keeps_nested_tuples():
    config = ToyConfig(width=3, sizes=((1, 0.5), (2, 0.25)))
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_a_field_that_an_older_file_lacks_has_its_default():
    value = to_json(OptimConfig(clip=3.0))
    del value["eps"]
    assert from_json(value) == OptimConfig(clip=3.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wdith": 3}, "has no field wdith"),
        ({"width": None}, "needs a value for width"),
        ({"class": "subprocess:Popen"}, "no config class"),
        ({"class": "unmask.config:parse_interval"}, "no config class"),
        ({"class": "unmask.nowhere:Config"}, "no config class"),
        ({"class": "unmask.config:RunConfig.nothing"}, "no config class"),
        ({"class": "not_imported_here:Config"}, "import not_imported_here first"),
    ],
)
def test_a_config_file_with_a_fault_is_refused(change, message):
    value = {**to_json(ToyConfig(width=3)), **change}
    value = {k: v for k, v in value.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        from_json(value)


def test_a_config_file_imports_nothing_foreign():
    assert "antigravity" not in sys.modules
    with pytest.raises(ValueError, match="import antigravity first"):
        from_json({"class": "antigravity:Config"})
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("500", ("steps", 500)),
        ("30s", ("seconds", 30)),
        ("20m", ("seconds", 1200)),
        ("1.5h", ("seconds", 5400)),
    ],
)
def test_intervals_are_steps_or_times(text, interval):
    assert parse_interval(text) == interval


@pytest.mark.parametrize("text", ["", "m", "0", "-5", "1.5", "20 minutes", "inf", "nan", "infm", "nanh"])
def test_other_intervals_are_refused_with_the_cure(text):
    with pytest.raises(ValueError, match="give steps"):
        parse_interval(text)


@pytest.mark.parametrize(
    ("optim", "batch", "lr"),
    [
        (OptimConfig(base_lr=1.5e-4), 4096, 2.4e-3),  # MAE, He et al. A.1
        (OptimConfig(base_lr=5e-4), 1024, 2e-3),  # iBOT ViT-S
        (OptimConfig(base_lr=1.5e-3, base_batch=None), 2048, 1.5e-3),  # BEiT gives the rate itself
    ],
)
def test_learning_rates_are_the_papers(optim, batch, lr):
    assert optim.lr(batch) == pytest.approx(lr)


def test_schedules_follow_their_field():
    optim = OptimConfig(base_lr=1e-3, base_batch=None, warmup_epochs=5.0, min_lr=1e-6, weight_decay=0.04)
    assert optim.lr_schedule(64) == WarmupCosine(1e-3, 5.0, 1e-6)
    assert dataclasses.replace(optim, schedule="step").lr_schedule(64) == StepCosine(1e-3, 5.0, 1e-6)
    assert dataclasses.replace(optim, schedule="constant").lr_schedule(64) == Constant(1e-3)
    assert optim.weight_decay_schedule() == Constant(0.04)
    ibot = dataclasses.replace(optim, weight_decay_end=0.4)
    assert ibot.weight_decay_schedule() == StepCosine(0.04, 0.0, 0.4)


def test_speed_fields_exist():
    assert {field.name for field in dataclasses.fields(RunConfig)} >= SPEED_FIELDS - {"data.test"}


def test_differences_name_the_field_and_both_values():
    run = RunConfig("toy", ToyConfig(width=3, masks=(RandomMask(), RandomMask(0.5))), DataConfig(), OptimConfig())
    other = dataclasses.replace(run, seed=1, method=ToyConfig(width=3, masks=(RandomMask(), RandomMask(0.6))))
    assert differences(run, run) == []
    assert differences(run, other) == ["method.masks.1.ratio: 0.5 -> 0.6", "seed: 0 -> 1"]


def test_differences_show_whole_values_where_classes_or_lengths_differ():
    one, two = ToyConfig(width=3, masks=(RandomMask(),)), ToyConfig(width=3, masks=(BlockMask(),))
    assert differences(one, two)[0].startswith("masks.0: RandomMask(ratio=0.75) -> BlockMask(")
    assert len(differences(one, ToyConfig(width=3, masks=()))) == 1


@pytest.mark.parametrize("what", ["build", "grids"])
def test_a_method_config_says_what_it_lacks(what):
    with pytest.raises(TypeError, match="ToyConfig has no"):
        getattr(ToyConfig(width=3), what)()
