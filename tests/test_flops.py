"""The formula for a step's operations against torch's counter."""

import dataclasses

import pytest
import toys
from ibot_toys import DINO, SMALL
from stage_toys import BEIT, DVAE
from test_classify import TINY as CLASSIFY
from toys import ALONE

from unmask.budget import synthetic_batch
from unmask.config import DataConfig, MethodConfig
from unmask.flops import flops_of_image, hidden_patches
from unmask.forecast import flops_per_image
from unmask.methods.base import Method
from unmask.methods.codec import CodecConfig
from unmask.train import prepare

DEEPER = CodecConfig(vocab=16, stride=2, width=8, groups=4, blocks=2, code_width=12)
PLAIN = CodecConfig(kind="beit", vocab=16, stride=4, width=8, code_width=12, likelihood="mse")
CASES = {
    "mae": toys.TINY,
    "beit": BEIT,
    "ibot": SMALL,
    "ibot-own-prototypes": dataclasses.replace(SMALL, shared_head=False, patch_prototypes=40, head_layers=2),
    "dino": DINO,
    "dvae": DVAE,
    "dvae-deeper": dataclasses.replace(DVAE, codec=DEEPER),
    "dvae-plain": dataclasses.replace(DVAE, codec=PLAIN),
    "supervised": CLASSIFY,
}


@pytest.mark.parametrize("name", CASES)
def test_the_formula_counts_what_torch_counts(name, tmp_path):
    config, method = prepare(toys.config(tmp_path, method=CASES[name]), ALONE)
    counted = flops_per_image(config, method, ALONE)
    batch = synthetic_batch(config.method, DataConfig(), 2, ALONE.device)  # the counter's
    hidden = sum(len(h) for h in batch.hidden) / 2
    # of the sum of a batch's [CLS] for iBOT's center the formula says nothing: a row or two a batch
    assert flops_of_image(config.method, hidden) == pytest.approx(counted, rel=0.01)


def test_hidden_patches_are_those_that_masks_draw():
    assert hidden_patches(toys.TINY) == 12  # of 16
    assert hidden_patches(DVAE) == 0


def test_a_method_without_a_formula_is_told_where_to_count():
    @dataclasses.dataclass(frozen=True)
    class Other(MethodConfig):
        views: tuple = ()
        masks: tuple = ()

        def grids(self):
            return ()

        def build(self) -> Method:
            raise AssertionError("counting builds nothing")

    with pytest.raises(TypeError, match=r"no formula for Other; count it with forecast\.flops_per_image"):
        flops_of_image(Other())
