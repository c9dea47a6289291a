"""Every method keeps the contract, and a method that does not is told which promise it breaks."""

import dataclasses

import pytest
import torch
from stage_toys import BEIT, DVAE, STAGES
from torch import nn
from toys import TINY

from unmask.config import MethodConfig
from unmask.methods.base import Method, Output
from unmask.testing import check_method
from unmask.views import View

LARGER = dataclasses.replace(TINY, vit=dataclasses.replace(TINY.vit, image_size=24), views=(View(24),))


def test_mae_conforms():
    check_method(TINY, other=LARGER)


@pytest.mark.slow
def test_mae_conforms_on_two_processes():
    check_method(TINY, distributed=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the shape checker's looking
def test_mae_conforms_compiled():
    check_method(TINY, compiled=True)


def test_the_discrete_vae_conforms():
    larger = dataclasses.replace(DVAE, views=(View(24, twin=24),))
    check_method(DVAE, other=larger, falls=1.0, lr=3e-3)


def test_beit_conforms():
    larger = dataclasses.replace(BEIT, vit=dataclasses.replace(BEIT.vit, image_size=24), views=(View(24, twin=24),))
    check_method(BEIT, other=larger, lr=3e-3)


@pytest.mark.slow
@pytest.mark.parametrize("config", STAGES.values(), ids=STAGES)
def test_both_stages_conform_on_two_processes(config):
    check_method(config, falls=1.0, lr=3e-3, distributed=True)


@dataclasses.dataclass(frozen=True)
class OutsideConfig(MethodConfig):
    """A method of another package: a linear autoencoder."""

    views: tuple[View, ...] = (View(8),)
    masks: tuple = ()
    flaw: str = ""

    def grids(self):
        return ()

    def build(self):
        return Outside(self)


class Outside(Method):
    def __init__(self, config):
        super().__init__()
        self.flaw = config.flaw
        self.encode, self.decode = nn.Linear(192, 32), nn.Linear(32, 192)
        self.spare = nn.Parameter(torch.zeros(1), requires_grad=config.flaw == "unused")
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, batch, at):
        x = batch.views[0].flatten(1)
        loss = (self.decode(self.encode(x)) - x).square().mean()
        if self.flaw == "nan":
            loss = loss * float("nan")
        if self.flaw == "remembers":
            self.seen += 1
        metrics = {"mse": loss if self.flaw == "attached" else loss.detach()}
        total = x.mean(0) if self.flaw == "averages" else x.sum(0)
        return Output(loss, metrics, {"pixels": total})

    def blocks(self):
        return [self.encode, self.decode]

    def backbone(self):
        return self.encode


def test_an_outside_method_conforms():
    check_method(OutsideConfig())


@pytest.mark.parametrize(
    ("flaw", "message"),
    [
        ("nan", "loss is"),
        ("unused", "spare has no gradient"),
        ("attached", "mse is not detached"),
        ("remembers", "changes parameters or buffers"),
        ("averages", "pixels"),
    ],
)
def test_a_broken_promise_is_named(flaw, message):
    with pytest.raises(AssertionError, match=message):
        check_method(OutsideConfig(flaw=flaw))
