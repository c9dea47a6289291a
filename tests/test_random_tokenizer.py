"""The benchmark's control: tokens of a random projection, in a run that is read like any other."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from cli_toys import pictures, unmask
from toys import same

from benchmarks import random_tokenizer
from unmask import tokenizers
from unmask.methods.codec import CodecConfig, build_codec
from unmask.run import Run
from unmask.tokenizers import Tokenizer

CODEC = CodecConfig(vocab=40, stride=4, width=4, groups=3, blocks=1, code_width=4)


@pytest.fixture
def images():
    return F.interpolate(torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(0)), size=16, mode="bilinear")


def projection(images, seed=0):
    torch.manual_seed(1)
    return random_tokenizer.RandomProjection(build_codec(CODEC), CODEC, images, seed)


def test_a_token_is_the_nearest_random_code_of_its_own_patch_alone(images):
    given = projection(images)
    assert isinstance(given, Tokenizer)
    torch.testing.assert_close(given.directions.T @ given.directions, torch.eye(32), atol=1e-5, rtol=0)
    ids = given.encode(images)
    assert ids.shape == (8, 16)
    assert len(ids.unique()) > 10
    x = given.patches(images)[2, 5]
    assert torch.equal(x.view(3, 4, 4), 0.8 * images[2, :, 4:8, 4:8] + 0.1)
    coordinates = (x @ given.directions - given.mean) / given.std
    assert ids[2, 5] == F.cosine_similarity(coordinates, given.codes).argmax()
    changed = images.clone()
    changed[2, :, 4:8, 4:8] = torch.rand(3, 4, 4)
    assert ((given.encode(changed) != ids).nonzero() == torch.tensor([2, 5])).all()


def test_the_seed_names_the_projection_and_the_state_is_the_stand_ins(images):
    assert torch.equal(projection(images).encode(images), projection(images).encode(images))
    assert not torch.equal(projection(images).encode(images), projection(images, seed=1).encode(images))
    held = dict(projection(images).state_dict())
    torch.manual_seed(1)
    assert same(held, dict(build_codec(CODEC).state_dict()))


@pytest.mark.slow
def test_the_control_trains_goes_on_is_evaluated_and_refuses_what_it_cannot_do(tmp_path, monkeypatch, capsys):
    photos, out = pictures(tmp_path / "photos", 24, classes="ab"), tmp_path / "run"
    tokenizers.save(build_codec(dataclasses.replace(CODEC, stride=8, groups=4)), tmp_path)
    words = ["random_tokenizer.py", str(photos), "--out", str(out), "--steps", "2", "--workers", "0"]
    words += ["--like", str(tmp_path / tokenizers.FILE)]
    monkeypatch.setattr("sys.argv", words)
    for _ in range(2):  # the second continues what is finished
        random_tokenizer.main()
        said = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (said["step"], said["from"]) == (2, "random-projection")
    record = json.loads((out / "tokenizer.json").read_text())
    assert (record["fingerprint"], record["stride"], record["vocab"]) == ("random-projection", 8, 40)
    assert record["health"]["token_perplexity"] > 1
    assert Run(out).metrics()
    judged = unmask("evaluate", out, "knn", "--train", photos, "--test", photos, "--k", "1")
    assert judged.code == 0, judged.err
    assert "made with random-projection" in unmask("show", out, "tokens", photos).line
