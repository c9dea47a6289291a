"""B2 and B3: averages of students, and the jitter of targets."""

import dataclasses

import analyze_toys
import numpy as np
import pytest
import torch

from unmask.analyze import averaging, target_noise
from unmask.analyze.continuation import continued, frozen
from unmask.analyze.intervals import Estimate
from unmask.methods.base import Progress
from unmask.randomness import key
from unmask.run import Run


def noise(steps, size=20_000):
    rng = key(0, "test", "noise")
    return [torch.from_numpy(rng.standard_normal(size, np.float32)) for _ in range(steps)]


@pytest.mark.parametrize("m", [0.5, 0.9])
def test_independent_noise_is_averaged_to_1_minus_m_over_1_plus_m(m):
    averages = averaging.Averages([m])
    for step in noise(round(averaging.WINDOWS / (1 - m)) + 50):
        averages.add([3 + 0.2 * step])
    assert averages.kept()[m] == pytest.approx(averaging.kept_variance(m), rel=0.1)


def test_averages_in_one_pass_are_those_of_stored_weights():
    steps = [each[:50] for each in noise(30, 50)]
    averages = averaging.Averages([0.8])
    for step in steps:
        averages.add([step[:20], step[20:]])
    first = 0.8**29 * steps[0]  # what an EMA begins as fades by m at each further step
    rebuilt = first + sum(0.2 * 0.8**k * steps[29 - k] for k in range(29))
    assert torch.allclose(torch.cat(averages.emas[0.8]), rebuilt, atol=1e-6)
    assert torch.allclose(torch.cat(averages.swa()), torch.stack(steps).mean(0), atol=1e-6)


def test_a_momentum_is_reported_when_its_average_has_settled():
    assert averaging.fitting(500) == [0.9, 0.99]
    assert averaging.fitting(5000) == [0.9, 0.99, 0.996, 0.999]
    with pytest.raises(ValueError, match="--steps 20 settles no average"):
        averaging.fitting(20)


def test_jitter_and_variance_of_what_does_not_change_are_0():
    a = torch.rand(3, 5)
    assert target_noise.jitter(a, 2 * a).abs().max() < 1e-12
    assert target_noise.target_variance(a, a).max() == 0
    assert target_noise.jitter(torch.eye(2), torch.eye(2).flip(0)).tolist() == [1, 1]


def test_differences_of_an_average_of_independent_noise_are_predicted():
    m, distance, kept = 0.9, 10, []
    ema, values = None, noise(200, 4000)
    for value in values:
        ema = value if ema is None else m * ema + (1 - m) * value
        kept.append(ema)
    teacher = (kept[-1] - kept[-1 - distance]).square().mean()
    student = (values[-1] - values[-1 - distance]).square().mean()
    assert float(teacher / student) == pytest.approx(target_noise.predicted(m, distance), rel=0.1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return analyze_toys.run(tmp_path_factory.mktemp("averaging") / "run", "ibot", steps=6, schedule="constant")


def test_a_continuation_takes_the_steps_that_training_would_have_taken(run, tmp_path):
    longer = analyze_toys.run(tmp_path / "longer", "ibot", steps=9, save_every="6", keep=9, schedule="constant")
    subject, ask = analyze_toys.subject(longer, "@6"), analyze_toys.asked(steps=3)
    *_, method = continued(subject, analyze_toys.Labelled(), ask, "averaging")
    after = longer.method(9).state_dict()
    assert all(torch.equal(value, after[name]) for name, value in method.state_dict().items())
    assert sorted(p.name for p in (longer.path / "checkpoints").iterdir()) == ["latest", "step-0000006", "step-0000009"]


def test_the_rate_stays_as_it_was_and_a_rate_of_0_is_refused():
    optim = analyze_toys.toys.config("x").optim
    optim = dataclasses.replace(optim, warmup_epochs=0.0, weight_decay=0.1, weight_decay_end=0.3)
    half = Progress(50, 100, 10.0)
    kept = frozen(optim, 8, half)
    assert kept.lr_schedule(8)(Progress(90, 100, 10.0)) == optim.lr_schedule(8)(half)
    assert kept.weight_decay_schedule()(Progress(90, 100, 10.0)) == optim.weight_decay_schedule()(half)
    with pytest.raises(ValueError, match="choose an earlier checkpoint, RUN@STEP"):
        frozen(optim, 8, Progress(100, 100, 10.0))


def test_averages_of_a_run_are_judged_beside_its_teacher(run, monkeypatch):
    monkeypatch.setattr(averaging, "MOMENTA", (0.5, 0.9))
    monkeypatch.setattr(averaging, "fitting", lambda steps: [0.5])
    ask = analyze_toys.asked(steps=12, train=analyze_toys.Labelled())
    (found,) = analyze_toys.drawn(averaging.run([analyze_toys.subject(run)], ask)).values()
    names = {"student", "EMA 0.5", "mean of all", "ensemble", "run's teacher"}
    assert set(found["accuracy"]) == names
    assert set(found["loss"]) == {"student", "EMA 0.5", "mean of all"}
    assert found["left_out"] == [0.9]
    assert found["predicted"] == {0.5: pytest.approx(1 / 3)}


def test_a_run_that_trains_on_is_as_before(run):
    before = run.method().state_dict()
    list(continued(analyze_toys.subject(run), analyze_toys.Labelled(), analyze_toys.asked(steps=2), "averaging"))
    after = Run(run.path).method().state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_answers_are_compared_with_those_of_the_last_round_number_of_steps(run):
    subject, ask = analyze_toys.subject(run), analyze_toys.asked(steps=20, train=analyze_toys.Labelled())
    (found,) = analyze_toys.drawn(target_noise.run([subject], ask)).values()
    assert found["distances"] == [1, 10]
    images = list(target_noise.minibatches(subject, target_noise.look(subject, ask.data, ask)))
    seen = {
        i: {name: target_noise.answer(getattr(now, name), now, images, 0.04).feature for name in ("student", "teacher")}
        for i, now in enumerate(continued(subject, ask.train, ask, "target-noise"))
        if i in (0, 1, 10, 11, 20)
    }
    for name in ("student", "teacher"):
        pairs = ((0, 1), (10, 11)), ((0, 10), (10, 20))
        wanted = [np.mean([target_noise.jitter(seen[a][name], seen[b][name]).mean() for a, b in p]) for p in pairs]
        assert found[name]["jitter"].value == pytest.approx(wanted, rel=1e-6)
    ratio = found["teacher"]["jitter"].value / found["student"]["jitter"].value
    assert found["ratio"]["jitter"].value == pytest.approx(ratio)


def test_only_a_student_and_a_teacher_are_continued():
    subject = analyze_toys.fresh("mae")
    with pytest.raises(ValueError, match="is a MAE; averaging is measured on IBOT"):
        next(continued(subject, analyze_toys.Labelled(), analyze_toys.asked(), "averaging"))


def test_one_settled_average_is_drawn():
    half = Estimate(*(np.float64(v) for v in (0.5, 0.4, 0.6)))
    figure = averaging._draw({"student": half, "EMA 0.9": half}, {"student": 3.0}, {0.9: 0.2}, {0.9: 0.05}, 100, 1)
    assert figure.axes[2].get_xlim() == pytest.approx((0.05, 0.2))
