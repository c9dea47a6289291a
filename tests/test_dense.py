import os

import numpy as np
import pytest
import torch
from cli_toys import unmask
from PIL import Image
from skimage import data
from sklearn.metrics import jaccard_score

from unmask.evaluate.dense import Counts, patch_classes, read_mask


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Parts of two photographs side by side; the mask says which is where, with an unknown seam."""
    root = tmp_path_factory.mktemp("dense")
    cat, cells = data.chelsea()[:, :, :3], np.dstack([data.coins()] * 3)
    for part, count, shift in (("train", 10, 0), ("test", 4, 67)):
        for i in range(count):
            picture, mask = np.array(cat[40 + 4 * i + shift :, 60 + 9 * i :][:32, :32]), np.zeros((32, 32), np.uint8)
            edge = 8 * (1 + i % 3)
            picture[:, edge:] = cells[10 + 20 * i :, 5 * i + shift :][:32, edge:32]
            mask[:, edge:], mask[:, edge] = 1, 255
            for kind, array in (("images", picture), ("masks", mask)):
                file = root / part / kind / "deep" / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(file)
    return root


def segment(root, *words):
    paths = {"train": "train/images", "test": "test/images", "masks-train": "train/masks", "masks-test": "test/masks"}
    given = []
    for name, path in paths.items():
        given += [f"--{name}", root / path]
    return unmask("evaluate", "untrained:mae-nano", "knn", "linear", *given, "--k", "5", "--workers", "0", *words)


def test_patches_of_two_textures_are_told_apart(folders):
    said = segment(folders)
    assert said.code == 0, said.err
    assert [(row["protocol"], row["k"], row["task"]) for row in said.json["results"]] == [
        ("knn", 5, "segmentation"),
        ("linear", None, "segmentation"),
    ]
    for row in said.json["results"]:
        assert (row["n_train"], row["n_test"], row["features"]) == (10, 4, "patches")
        assert 0.6 < row["miou_low"] <= row["miou"] <= row["miou_high"] <= 1
        assert row["ci_low"] <= row["top1"] <= row["ci_high"]
    assert "mean IoU in percent" in " ".join(said.err.split())


def test_the_scores_are_scikit_learns_over_all_pixels():
    rng = np.random.default_rng(0)
    true, said = rng.integers(0, 3, (4, 50)), rng.integers(0, 3, (4, 50))
    right = np.array([[((t == c) & (s == c)).sum() for c in range(4)] for t, s in zip(true, said, strict=True)])
    sums = [np.array([[(line == c).sum() for c in range(4)] for line in each]) for each in (true, said)]
    top1, fair, miou = Counts(right, *sums).scores(np.ones((1, 4)))[:, 0]
    assert top1 == pytest.approx((true == said).mean())
    assert fair == pytest.approx(np.mean([(said[true == c] == c).mean() for c in range(3)]))
    assert miou == pytest.approx(jaccard_score(true.ravel(), said.ravel(), average="macro"))


def test_a_patch_has_the_class_of_most_of_its_pixels():
    mask = np.zeros((4, 6), np.uint8)
    mask[:2, 3:] = 7
    mask[2:, :2] = 255
    assert patch_classes(mask, (2, 2)).tolist() == [0, 7, 255, 0]


def test_masks_are_cut_like_images_by_nearest_pixels(tmp_path):
    mask = np.repeat(np.array([[0, 3], [9, 255]], np.uint8).repeat(30, 0), 30, 1)
    Image.fromarray(mask).convert("P").save(tmp_path / "mask.png")
    cut = read_mask(str(tmp_path / "mask.png"), str(tmp_path / "mask.png"), (32, 32))
    assert cut.shape == (32, 32) and set(np.unique(cut)) <= {0, 3, 9, 255}
    assert (cut[0, 0], cut[0, -1], cut[-1, 0], cut[-1, -1]) == (0, 3, 9, 255)
    torch.testing.assert_close(torch.from_numpy(cut[:16, :16]), torch.zeros(16, 16, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("case", "message"),
    [("missing", "1 of 10 images have no mask"), ("color", "mode RGB"), ("size", "its image (32, 32)")],
)
def test_masks_that_do_not_fit_are_named(case, message, folders, tmp_path):
    root = tmp_path / "data"
    for part in ("train", "test"):
        for kind in ("images", "masks"):
            (root / part / kind).parent.mkdir(parents=True, exist_ok=True)
            os.symlink(folders / part / kind, root / part / kind)
    broken = root / "train" / "broken" / "deep"
    broken.mkdir(parents=True)
    for file in (folders / "train" / "masks" / "deep").iterdir():
        if case != "missing" or file.stem != "3":
            with Image.open(file) as mask:
                mask = mask.convert("RGB") if case == "color" else mask.resize((30, 32)) if case == "size" else mask
                mask.save(broken / file.name)
    said = segment(root, "--masks-train", broken.parent)
    assert said.code == 1
    assert message in said.line
