"""B4: curvature of known functions, and of tiny runs."""

import analyze_toys
import numpy as np
import pytest
import torch
from torch import nn

from unmask.analyze import flatness


def quadratic(matrix):
    """1/2 x^T A x, whose Hessian is A, split over two parameters."""
    torch.manual_seed(0)
    a, b = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(4))

    def loss():
        x = torch.cat([a.flatten(), b])
        return x @ matrix @ x / 2

    return [a, b], loss


def test_the_trace_of_a_diagonal_hessian_is_exact():
    parameters, loss = quadratic(torch.diag(torch.arange(10.0)))
    found = flatness.hessian_trace(parameters, loss, probes=4)
    assert float(found.value) == pytest.approx(45)
    assert float(found.high - found.low) == pytest.approx(0, abs=1e-4)


def test_the_trace_of_a_full_hessian_is_met_within_its_interval():
    root = torch.randn(10, 10, generator=torch.Generator().manual_seed(1))
    matrix = root @ root.T
    parameters, loss = quadratic(matrix)
    found = flatness.hessian_trace(parameters, loss, probes=400)
    assert found.low - 1 <= float(matrix.trace()) <= found.high + 1
    assert float(found.value) == pytest.approx(float(matrix.trace()), rel=0.1)


def test_a_line_goes_through_both_ends_and_comes_back():
    parameters, loss = quadratic(torch.eye(10))
    start, end = [p.detach().clone() for p in parameters], [torch.zeros_like(p) for p in parameters]
    found = flatness.line(start, end, parameters, loss, (0.0, 0.5, 1.0))
    whole = float(loss().detach())
    assert found == pytest.approx([whole, whole / 4, 0], abs=1e-6)
    assert torch.equal(parameters[0], start[0])


def test_perturbations_are_as_long_as_their_filters_and_leave_biases():
    weight, bias = torch.randn(5, 3, 2), torch.randn(5)
    step, none = flatness.filter_normalized([weight, bias], 0.1, torch.Generator().manual_seed(0))
    assert torch.allclose(step.flatten(1).norm(dim=1), 0.1 * weight.flatten(1).norm(dim=1), rtol=1e-5)
    assert none.abs().max() == 0


def test_sharpness_of_a_quadratic_grows_with_the_square_of_the_step():
    parameters, loss = quadratic(torch.eye(10))
    found = flatness.sharpness(parameters, loss, sigmas=(0.1, 0.2), draws=200)
    before = [p.detach().clone() for p in parameters]
    small, large = (float(found[sigma].value) for sigma in (0.1, 0.2))
    # E of the rise is sigma^2 |W|^2 / 2, and the first-order term has mean 0
    wanted = 0.1**2 * float(parameters[0].detach().square().sum()) / 2
    assert small == pytest.approx(wanted, abs=3 * float(found[0.1].high - found[0.1].value))
    assert large > 2 * small
    assert torch.equal(parameters[0], before[0])


@pytest.mark.parametrize(("method", "networks"), [("ibot", ("student", "teacher")), ("mae", ("network",))])
def test_the_networks_of_a_run_are_measured_and_left_alone(method, networks, monkeypatch):
    monkeypatch.setattr(flatness, "PROBES", 2)
    subject = analyze_toys.fresh(method)
    before = {name: value.clone() for name, value in subject.method.state_dict().items()}
    (found,) = analyze_toys.drawn(flatness.run([subject], analyze_toys.asked())).values()
    assert all(np.isfinite(found[name]["hessian_trace"].value) for name in networks)
    if method == "ibot":  # the line meets both networks
        ends = [found["line"]["loss"][flatness.ALPHAS.index(alpha)] for alpha in (0.0, 1.0)]
        assert ends == pytest.approx([found["student"]["loss"], found["teacher"]["loss"]], rel=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in subject.method.state_dict().items())
    assert subject.method.config.patch_weight == 1 if method == "ibot" else True
