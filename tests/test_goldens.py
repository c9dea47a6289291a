"""The golden cases of the official MAE through our own classes, and proof that they would notice."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unmask.methods import mae
from unmask.testing import goldens

GOLDEN = Path(__file__).parent / "golden"
MAE = ("mae_forward", "mae_layernorm_eps_probe", "mae_pos_embed", "mae_trajectory")


def copy_cases(folder, *names):
    for name in names:
        for suffix in (".safetensors", ".json"):
            shutil.copy(GOLDEN / f"{name}{suffix}", folder)
    return folder


@pytest.mark.parametrize("name", MAE)
def test_golden_case_is_reproduced_whole(name, tmp_path):
    report = goldens.run_goldens(copy_cases(tmp_path, name))
    assert report["missing"] == []
    assert report["failed"] == []
    assert report["cases"][name]
    assert max(report["cases"][name].values()) <= 1


def wrong_epsilon(monkeypatch):
    original = nn.LayerNorm.__init__
    monkeypatch.setattr(nn.LayerNorm, "__init__", lambda self, shape, **_: original(self, shape, eps=1e-5))


def wrong_gelu(monkeypatch):
    original = nn.GELU.__init__
    monkeypatch.setattr(nn.GELU, "__init__", lambda self, **_: original(self, approximate="tanh"))


def wrong_variance(monkeypatch):
    def biased(patches):
        return F.layer_norm(patches, patches.shape[-1:], eps=1e-6)

    monkeypatch.setattr(mae, "normalize", biased)


def wrong_pixel_order(monkeypatch):
    original = mae.patchify

    def channel_first(image, patch):
        patches = original(image, patch)
        return patches.unflatten(-1, (-1, image.shape[1])).transpose(-1, -2).flatten(-2)

    monkeypatch.setattr(mae, "patchify", channel_first)


def wrong_decay(monkeypatch):
    from unmask.methods import base

    monkeypatch.setattr(mae.MAE, "parameter_groups", lambda self: base.decay_groups(self, skip={"cls_token"}))


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("mae_layernorm_eps_probe", wrong_epsilon),
        ("mae_forward", wrong_gelu),
        ("mae_forward", wrong_variance),
        ("mae_trajectory", wrong_pixel_order),
        ("mae_trajectory", wrong_decay),
    ],
)
def test_golden_case_catches_a_wrong_variant(name, mistake, monkeypatch, tmp_path):
    mistake(monkeypatch)
    assert goldens.run_goldens(copy_cases(tmp_path, name))["failed"]


def test_another_device_is_refused_where_it_is_not(tmp_path, monkeypatch):
    copy_cases(tmp_path, "mae_pos_embed")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch sees no GPU here"):
        goldens.run_goldens(tmp_path, "cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_golden_case_passes_on_a_gpu():
    report = goldens.run_goldens(GOLDEN, "cuda")
    assert report["missing"] == report["failed"] == []


def test_a_case_is_found_by_its_field_or_else_by_its_file_name(tmp_path):
    copy_cases(tmp_path, "mae_pos_embed")
    sidecar = json.loads((tmp_path / "mae_pos_embed.json").read_text())
    for name, case in (("one", "mae_pos_embed"), ("mae_pos_embed_other", None)):
        shutil.copy(tmp_path / "mae_pos_embed.safetensors", tmp_path / f"{name}.safetensors")
        (tmp_path / f"{name}.json").write_text(json.dumps({**sidecar, "case": case}))
    report = goldens.run_goldens(tmp_path)
    assert set(report["cases"]) == {"mae_pos_embed", "mae_pos_embed_other", "one"}
    assert report["missing"] == report["failed"] == []


def test_a_case_without_code_is_missing_and_a_broken_one_fails(tmp_path):
    copy_cases(tmp_path, "mae_pos_embed", "mae_forward")
    sidecar = json.loads((tmp_path / "mae_pos_embed.json").read_text())
    (tmp_path / "mae_pos_embed.json").write_text(json.dumps({**sidecar, "case": "swin_forward"}))
    (tmp_path / "mae_pos_embed.safetensors").rename(tmp_path / "swin.safetensors")
    (tmp_path / "mae_pos_embed.json").rename(tmp_path / "swin.json")
    sidecar = json.loads((tmp_path / "mae_forward.json").read_text())
    sidecar["config"]["model"]["num_heads"] = 5
    (tmp_path / "mae_forward.json").write_text(json.dumps(sidecar))
    report = goldens.run_goldens(tmp_path)
    assert any(line.startswith("swin/") for line in report["missing"])
    assert any("does not divide into 5 heads" in line for line in report["failed"])


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        (torch.tensor([1.0, 2.0]), 0.0),
        (torch.tensor([1.0, 2.3]), 1.0),
        (torch.tensor([1.0, math.nan]), math.inf),
        (torch.tensor([1.0]), math.inf),
    ],
)
def test_ratio_is_the_worst_deviation_over_its_tolerance(ours, expected):
    rule = {"suggested_atol": 0.1, "suggested_rtol": 0.1}
    assert goldens.ratio(ours, torch.tensor([1.0, 2.0]), rule) == pytest.approx(expected, rel=1e-6)


def test_integers_must_be_equal():
    rule = {"suggested_atol": 5, "suggested_rtol": 5}
    assert goldens.ratio(torch.tensor([1, 2]), torch.tensor([1, 2]), rule) == 0
    assert goldens.ratio(torch.tensor([1, 3]), torch.tensor([1, 2]), rule) == math.inf


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "unmask.testing", "goldens", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_command_prints_one_json_object_and_exits_0(tmp_path):
    done = command(copy_cases(tmp_path, "mae_forward", "mae_pos_embed"), "--json")
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    assert set(report) == {"cases", "missing", "failed"}
    assert set(report["cases"]) == {"mae_forward", "mae_pos_embed"}


def test_the_command_exits_1_when_an_output_is_off_or_the_folder_empty(tmp_path):
    empty = command(tmp_path, "--json")
    assert empty.returncode == 1
    assert "no golden case" in empty.stderr
    copy_cases(tmp_path, "mae_pos_embed")
    sidecar = json.loads((tmp_path / "mae_pos_embed.json").read_text())
    for rule in sidecar["tensors"].values():
        rule.update(suggested_atol=-1.0, suggested_rtol=0.0)
    sidecar["config"]["sincos"] = sidecar["config"]["sincos"][:1]
    (tmp_path / "mae_pos_embed.json").write_text(json.dumps(sidecar))
    done = command(tmp_path)
    assert done.returncode == 1
    assert "missing: " in done.stdout
