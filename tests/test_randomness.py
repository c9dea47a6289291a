"""Named draws and the shuffled order: same place, same number; every order is a permutation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.randomness import between, fold, key, shuffled_index

seeds = st.integers(0, 2**63 - 1)
places = st.lists(st.integers(-(2**40), 2**40) | st.text(st.characters(codec="ascii", categories=["L"])), max_size=4)


@given(st.integers(1, 4097), seeds, st.integers(0, 1000))
def test_shuffled_index_is_a_bijection(n, seed, epoch):
    assert {shuffled_index(i, n, seed, epoch) for i in range(n)} == set(range(n))


@pytest.mark.parametrize("n", [*range(1, 70), 255, 256, 257, 1023, 1025, 4095, 4096, 4097])
def test_shuffled_index_is_a_bijection_around_powers_of_two(n):
    assert sorted(shuffled_index(i, n, 5, 2) for i in range(n)) == list(range(n))


@pytest.mark.parametrize("n", [3, 10, 50])
def test_every_record_comes_to_every_place_equally_often(n):
    epochs = 200 * n
    for place in (0, n // 2, n - 1):
        counts = np.bincount([shuffled_index(place, n, 1, e) for e in range(epochs)], minlength=n)
        chi2 = ((counts - 200) ** 2 / 200).sum()
        assert chi2 < n - 1 + 5 * np.sqrt(2 * (n - 1)), place


def test_neighbors_in_the_order_are_not_neighbors_in_the_data():
    n = 5000
    order = np.array([shuffled_index(i, n, 0, 0) for i in range(n)])
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 5 / np.sqrt(n)
    assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 5 / np.sqrt(n)


def test_epochs_and_seeds_have_their_own_order():
    orders = {tuple(shuffled_index(i, 50, s, e) for i in range(50)) for s in range(4) for e in range(4)}
    assert len(orders) == 16


@pytest.mark.parametrize("i", [-1, 10])
def test_a_place_outside_the_data_is_refused(i):
    with pytest.raises(ValueError, match=r"range\(10\)"):
        shuffled_index(i, 10, 0, 0)


@given(seeds, places)
def test_fold_fits_torchs_seed_and_repeats(seed, place):
    assert 0 <= fold(seed, *place) < 2**63
    assert fold(seed, *place) == fold(seed, *place)


@given(st.lists(st.tuples(seeds, places), min_size=2, max_size=10, unique_by=repr))
def test_different_places_have_different_numbers(draws):
    names = {(seed, *map(str, place)) for seed, place in draws}
    assert len({fold(seed, *place) for seed, place in draws}) == len(names)


def test_key_is_the_same_today_as_ever():
    # Runs are resumed across versions: these numbers may not change without a major release.
    assert fold(0, "mask", 0, 7) == 2652907133849713134
    np.testing.assert_array_equal(key(0, "mask", 0, 7).integers(0, 1000, 4), [379, 538, 747, 819])
    assert [shuffled_index(i, 10, 0, 0) for i in range(10)] == [3, 7, 1, 0, 9, 8, 2, 5, 4, 6]


def test_first_numbers_of_neighboring_keys_are_uniform_and_independent():
    first = np.array([key(0, "view", 0, position).random() for position in range(5000)])
    counts = np.histogram(first, bins=20, range=(0, 1))[0]
    assert ((counts - 250) ** 2 / 250).sum() < 19 + 5 * np.sqrt(38)
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 5 / np.sqrt(5000)


def test_between_draws_what_numpys_uniform_draws():
    ours, theirs = key(0, "between"), key(0, "between")
    spans = [(0.2, 1.0), (-0.1, 0.1), (0.6, 1.4), (1e-3, 1e3)] * 50
    assert [between(*span, ours) for span in spans] == [theirs.uniform(*span) for span in spans]


def test_a_key_is_philox_keyed_by_its_folded_number():
    ours, theirs = key(5, "a", 1), np.random.Generator(np.random.Philox(key=fold(5, "a", 1)))
    assert ours.random(5).tolist() == theirs.random(5).tolist()
    assert ours.integers(0, 1000, 5).tolist() == theirs.integers(0, 1000, 5).tolist()
