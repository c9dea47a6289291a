"""A1 and A2: closed cases of attention, and what they are measured on."""

import analyze_toys
import numpy as np
import pytest
import torch

from unmask.analyze import attention_distance, attention_maps, attention_nmi
from unmask.analyze.attention_distance import attention_distance as distance
from unmask.analyze.attention_nmi import attention_nmi as nmi


def uniform(n):
    return torch.full((1, 1, n, n), 1 / n)


def test_uniform_attention_on_196_patches_of_16_px_reaches_116_49_px():
    assert float(distance(uniform(196), (14, 14), (16, 16))) == pytest.approx(116.49, abs=0.005)


def test_a_patch_that_sees_itself_alone_reaches_nowhere():
    assert float(distance(torch.eye(12)[None, None], (3, 4), (8, 8))) == 0


def test_distance_counts_rows_and_columns_in_their_own_pixels():
    to_last = torch.zeros(1, 1, 6, 6)
    to_last[..., 5] = 1  # all look at the last patch of a 2 x 3 grid of 10 x 20 px
    far = [np.hypot(10 * (1 - r), 20 * (2 - c)) for r in range(2) for c in range(3)]
    assert float(distance(to_last, (2, 3), (10, 20))) == pytest.approx(np.mean(far), rel=1e-6)


def test_queries_that_attend_alike_share_no_information_with_keys():
    assert float(nmi(uniform(49))) == pytest.approx(0, abs=1e-5)
    same = torch.rand(49).softmax(0).expand(1, 1, 49, 49)
    assert float(nmi(same)) == pytest.approx(0, abs=1e-5)
    one = torch.zeros(1, 1, 9, 9)
    one[..., 3] = 1
    assert float(nmi(one)) == 0


def test_a_permutation_has_all_the_information():
    order = torch.randperm(49, generator=torch.Generator().manual_seed(0))
    assert float(nmi(torch.eye(49)[order][None, None])) == pytest.approx(1, abs=1e-6)


def test_half_the_information_is_half_the_entropy():
    pairs = torch.block_diag(*[torch.full((2, 2), 0.5)] * 2)  # 4 queries, 2 groups: I = ln 2, H = ln 4
    assert float(nmi(pairs[None, None])) == pytest.approx(0.5, abs=1e-6)


def test_the_class_token_and_registers_are_left_out():
    attention = torch.rand(2, 3, 6, 6).softmax(-1)
    inner = attention_maps.between_patches(attention, 2)
    assert inner.shape == (2, 3, 4, 4)
    assert torch.allclose(inner.sum(-1), torch.ones(2, 3, 4))
    assert torch.allclose(inner[..., 0] / inner[..., 1], attention[:, :, 2:, 2] / attention[:, :, 2:, 3], rtol=1e-5)


@pytest.mark.parametrize("module", [attention_distance, attention_nmi])
def test_all_blocks_and_heads_are_measured(module):
    subject = analyze_toys.fresh("mae")
    (found,) = analyze_toys.drawn(module.run([subject], analyze_toys.asked())).values()
    assert found["images"] == 12
    assert found["heads"].value.shape == (2, 2)
    assert np.allclose(found["heads"].value.mean(1), found["layers"].value)
    assert (found["layers"].low <= found["layers"].value).all()
    assert (found["layers"].value <= found["layers"].high).all()


def test_a_tokenizer_has_no_attention():
    subject = analyze_toys.fresh("dvae")
    with pytest.raises(ValueError, match="is a DVAE, which has no ViT; attention-nmi needs one"):
        attention_nmi.run([subject], analyze_toys.asked())
