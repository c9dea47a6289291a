"""Fine-tuning: whose setting, what of the weights is kept, resized positions, a row like the others."""

import dataclasses

import numpy as np
import pytest
import torch
from test_evaluate import KEYS, MEAN, STD, sets
from test_evaluate import vit as plain_vit

from unmask.evaluate import EvalModel, evaluate
from unmask.evaluate.finetune import finetune
from unmask.evaluate.settings import PUBLISHED, fine_tuning, method_of, optim_of, size_of
from unmask.positions import resize_relative
from unmask.vit import SIZES, ViT, ViTConfig
from unmask.weights.finetuned import finetuned_from

SMALL = ViTConfig(image_size=16, patch=4, width=32, depth=2, heads=2)
BEIT = dataclasses.replace(SMALL, pos_embed="none", rel_pos="shared", qkv_bias="qv", mask_token=True)
MAE = dataclasses.replace(SMALL, pos_embed="sincos")


def classifier_of(config, **changes):
    method = method_of(fine_tuning(config, 60), config, 3, MEAN, None)
    return dataclasses.replace(method, **changes)


@pytest.mark.parametrize(
    ("whose", "size", "vit", "setting"),
    [  # fidelity.md 6.1: lr, epochs, warm-up, layer decay, drop path, pooling
        ("mae", "base", {"pos_embed": "sincos"}, (2e-3, 100, 5, 0.65, 0.1, "mean")),
        ("mae", "large", {"pos_embed": "sincos"}, (4e-3, 50, 5, 0.75, 0.2, "mean")),
        ("mae", "huge", {"pos_embed": "sincos"}, (4e-3, 50, 5, 0.75, 0.3, "mean")),
        ("beit", "base", {"rel_pos": "shared"}, (4e-3, 100, 20, 0.65, 0.1, "mean")),
        ("beit", "large", {"rel_pos": "shared"}, (1e-3, 50, 5, 0.75, 0.2, "mean")),
        ("beit-22k", "base", {"rel_pos": "per-block"}, (2e-5, 30, 5, 0.85, 0.1, "mean")),
        ("beit-22k", "large", {"rel_pos": "per-block"}, (2e-5, 30, 5, 0.9, 0.4, "mean")),
        ("ibot", "small", {}, (4e-3, 200, 20, 0.75, 0.1, "cls")),
        ("ibot", "base", {}, (4e-3, 100, 20, 0.65, 0.2, "cls")),
        ("ibot", "large", {}, (4e-3, 50, 5, 0.75, 0.4, "cls")),
    ],
)
def test_settings_are_the_published_table(whose, size, vit, setting):
    how = fine_tuning(ViTConfig(**SIZES[size], **vit), 1_281_167)
    assert how == PUBLISHED[whose, size]
    assert (how.lr, how.epochs, how.warmup, how.layer_decay, how.drop_path, how.pool) == setting
    before = whose == "beit-22k"
    assert (how.batch, how.weight_decay, how.mix) == ((512, 1e-8, False) if before else (1024, 0.05, True))
    assert optim_of(how).betas == (0.9, 0.999)
    assert (optim_of(how).min_lr, optim_of(how).clip) == (1e-6, None)
    assert optim_of(how).schedule == ("epoch" if whose == "mae" else "step")


def test_a_small_network_and_little_data_get_a_setting_that_fits():
    how = fine_tuning(SMALL, 1250)
    assert size_of(SMALL) is None
    assert (how.epochs, how.batch, how.mild) == (48.0, 32, True)
    assert how.lr == pytest.approx(5e-4)
    few = fine_tuning(ViTConfig(), 1250)  # ViT-B on 1,250 images: the published epochs at a smaller batch
    assert (few.epochs, few.batch) == (100, 32)
    assert few.lr == pytest.approx(4e-3 / 32)


def test_other_epochs_keep_the_part_that_is_warm_up():
    optim = optim_of(PUBLISHED["beit", "base"])
    assert optim.warmup_fraction == pytest.approx(0.2)


def test_mae_trains_its_positions_and_drops_its_norm():
    old = ViT(MAE)
    torch.nn.init.constant_(old.norm.weight, 3.0)
    method = classifier_of(MAE).build()
    fresh = finetuned_from(old.state_dict(), MAE, method.vit)
    assert fresh == ["fc_norm.bias", "fc_norm.weight", "head.bias", "head.weight"]
    assert method.vit.pos_embed.requires_grad
    assert torch.equal(method.vit.pos_embed, old.pos_embed)
    assert torch.equal(method.vit.fc_norm.weight, torch.ones(32))


def test_ibot_keeps_its_norm_under_the_class_token():
    old = ViT(SMALL)
    torch.nn.init.constant_(old.norm.weight, 3.0)
    method = classifier_of(SMALL).build()
    assert finetuned_from(old.state_dict(), SMALL, method.vit) == ["head.bias", "head.weight"]
    assert torch.equal(method.vit.norm.weight, old.norm.weight)


def test_beit_s_shared_table_is_copied_into_every_block_and_computes_the_same():
    old = ViT(BEIT).eval()
    torch.nn.init.normal_(old.rel_pos_bias.relative_position_bias_table)
    vit = classifier_of(BEIT).build().eval().vit
    finetuned_from(old.state_dict(), BEIT, vit)
    assert vit.rel_pos_bias is None and not hasattr(vit.mask_token, "shape")
    image = torch.randn(2, 3, 16, 16)
    ours, theirs = vit(image, layers=(-1,))[0], old(image, layers=(-1,))[0]
    torch.testing.assert_close(ours.patches, theirs.patches)
    tables = [block.attn.rel_pos_bias.relative_position_bias_table for block in vit.blocks]
    assert tables[0].data_ptr() != tables[1].data_ptr()


def test_foreign_weights_are_refused():
    vit = classifier_of(SMALL).build().vit
    with pytest.raises(ValueError, match="do not fit"):
        finetuned_from(ViT(dataclasses.replace(SMALL, width=64)).state_dict(), SMALL, vit)


def test_a_resized_relative_table_keeps_what_is_smooth_and_the_class_rows():
    reach = np.cumsum(1.09031 ** np.arange(13))
    x = np.concatenate([-reach[::-1], [0.0], reach])
    rows, columns = np.meshgrid(x, x, indexing="ij")
    plane = torch.from_numpy(0.3 * rows - 0.1 * columns).flatten()
    table = torch.cat([plane, torch.tensor([7.0, 8.0, 9.0])])[:, None].float()
    resized = resize_relative(table, (14, 14), (24, 24))
    at = torch.arange(-23.0, 24.0)
    expected = (0.3 * at[:, None] - 0.1 * at).flatten()
    torch.testing.assert_close(resized[:-3, 0], expected, atol=1e-3, rtol=0)
    assert resized[-3:, 0].tolist() == [7.0, 8.0, 9.0]


def test_positions_follow_another_image_size():
    for config in (SMALL, MAE, BEIT):
        method = method_of(fine_tuning(config, 60), config, 3, MEAN, 24)
        vit = method.build().vit
        finetuned_from(ViT(config).state_dict(), config, vit)
        assert vit.logits(torch.randn(1, 3, 24, 24)).shape == (1, 3)


@pytest.fixture(scope="module")
def tuned():
    backbone = plain_vit()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    model = EvalModel("run", backbone, (16, 16), MEAN, STD)
    train, test = sets(names=["x", "y", "z"])
    rows = evaluate([model], ["finetune"], train, test, epochs=30, lr=1e-2, workers=0)
    return rows, before, backbone


def test_fine_tuning_returns_a_row_like_the_others_and_learns(tuned):
    (row,), _, _ = tuned
    assert list(row) == KEYS
    assert (row["protocol"], row["features"], row["layer"], row["k"]) == ("finetune", "cls", "last", None)
    assert (row["n_train"], row["n_test"]) == (60, 45)
    assert row["ci_low"] <= row["top1"] <= row["ci_high"]
    assert row["top1"] > 0.45  # chance: a third


def test_the_backbone_that_was_given_does_not_move(tuned):
    _, before, backbone = tuned
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_unlabelled_training_images_are_left_out_and_a_saved_run_goes_on(tmp_path):
    train, test = sets(24, 12)
    labels = train.labels.copy()
    labels[:6] = -1
    model = EvalModel("run", plain_vit(), (16, 16), MEAN, STD)
    options = {"classes": 5, "epochs": 1, "workers": 0, "folder": tmp_path / "run"}
    first = finetune(model, (train, test), (labels, test.labels), **options)
    assert first.answer.row["n_train"] == 18
    assert first.vit.config.classes == 5
    again = finetune(model, (train, test), (labels, test.labels), **options)
    assert again.answer.row == first.answer.row
    with pytest.raises(ValueError, match="another configuration"):
        finetune(model, (train, test), (labels, test.labels), **options | {"lr": 1e-4})


def test_what_cannot_be_fine_tuned_is_said():
    train, test = sets(12, 6)
    truth = (train.labels, test.labels)
    with pytest.raises(ValueError, match="no network to fine-tune"):
        finetune(EvalModel("pixels", None, (16, 16), MEAN, STD), (train, test), truth)
    one = np.zeros(12, np.int64)
    with pytest.raises(ValueError, match="give two classes"):
        finetune(EvalModel("run", plain_vit(), (16, 16), MEAN, STD), (train, test), (one, test.labels))
