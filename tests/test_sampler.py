"""Which image stands where: shares of a batch, passes through each kind, places."""

import pickle
from collections import Counter

import numpy as np
import pytest

from covjax.data import sampler
from covjax.data.sampler import BalancedBatches, ShuffledEpochs
from covjax.errors import UsageError

POSITIVE = [k % 3 == 0 for k in range(20)]  # 7 positive images, 13 others
SEED = 5


def make(batch_size: int, share: tuple[float, float], steps: int, **other):
    return BalancedBatches(
        other.get("positive", POSITIVE), batch_size, other.get("seed", SEED),
        share=share, total_steps=steps,
    )  # fmt: skip


def batches_of(balanced, batch_size: int, steps: int) -> list[list[tuple[int, int]]]:
    """The keys of each batch."""
    positions = np.arange(steps * batch_size).reshape(steps, batch_size)
    return [[balanced(position) for position in row] for row in positions]


def counts_of(balanced, batch_size: int, steps: int) -> list[int]:
    """Positive images in each batch."""
    return [
        sum(POSITIVE[index] for _, index in batch)
        for batch in batches_of(balanced, batch_size, steps)
    ]


@pytest.mark.parametrize(
    ("batch_size", "share", "counts"),
    [
        (8, (1.0, 0.0), [8, 6, 4, 2, 0]),
        (8, (0.0, 1.0), [0, 2, 4, 6, 8]),
        (32, (0.5, 0.25), [16, 14, 12, 10, 8]),
        (4, (0.5, 0.5), [2, 2, 2]),
        (6, (1.0, 0.8), [6, 6, 5, 5, 5]),  # 6, 5.7, 5.4, 5.1 and 4.8, rounded
        (10, (0.37, 0.9), [4]),  # one step is the first
    ],
)
def test_share_goes_from_the_first_step_to_the_last(batch_size, share, counts):
    balanced = make(batch_size, share, len(counts))
    assert counts_of(balanced, batch_size, len(counts)) == counts


def test_images_of_a_kind_come_equally_often_whatever_the_share():
    balanced, seen = make(8, (0.9, 0.1), 60), Counter[int]()
    for batch in batches_of(balanced, 8, 60):
        seen.update(index for _, index in batch)
        for kind in (True, False):
            often = [seen[k] for k in range(20) if POSITIVE[k] == kind]
            assert max(often) - min(often) <= 1
    assert min(seen.values()) > 15  # several passes through both


def test_a_pass_holds_every_image_of_its_kind_once():
    keys = sum(batches_of(make(8, (0.9, 0.1), 60), 8, 60), [])
    assert len(set(keys)) == len(keys)  # or an augmentation would come again
    for kind in (True, False):
        samples = {k for k in range(20) if POSITIVE[k] == kind}
        passes = [number for number, k in keys if k in samples]
        assert sorted(set(passes)) == list(range(max(passes) + 1))
        for number in range(max(passes)):  # the last is not whole
            assert {k for n, k in keys if n == number and k in samples} == samples
            assert passes.count(number) == len(samples)


def test_every_pass_and_every_seed_has_an_order_of_its_own():
    orders = set()
    for seed in (0, 1):
        keys = sum(batches_of(make(1, (0, 0), 65, seed=seed), 1, 65), [])
        orders |= {tuple(k for n, k in keys if n == number) for number in range(5)}
    assert len(orders) == 10


def test_places_of_positive_images_are_drawn_anew_for_each_batch():
    # 400 batches of 8, of which 2 are positive: each place has 100, give or take 26
    # (three standard deviations); devices that share a batch get both kinds.
    held = np.array(
        [
            [POSITIVE[index] for _, index in batch]
            for batch in batches_of(make(8, (0.25, 0.25), 400), 8, 400)
        ]
    )
    assert (held.sum(axis=1) == 2).all()
    assert np.abs(held.sum(axis=0) - 100).max() < 30
    # 28 pairs of places: a batch repeats the one before once in 28 times.
    same = (held[1:] == held[:-1]).all(axis=1).mean()
    assert same < 0.1


def test_a_position_says_the_same_whoever_asks_and_when():
    balanced = make(8, (0.9, 0.1), 60)
    expected = sum(batches_of(balanced, 8, 60), [])
    sampler._places.cache_clear()
    sampler._walk_order.cache_clear()
    copy = pickle.loads(pickle.dumps(balanced))  # as a worker gets it
    backwards = [copy(np.int64(position)) for position in reversed(range(480))]
    assert backwards[::-1] == expected
    assert all(type(part) is int for key in expected for part in key)


@pytest.mark.parametrize(
    ("positive", "share", "kind"),
    [
        ([False] * 4, (0.5, 0.5), "positive"),
        ([False] * 4, (0.0, 0.5), "positive"),
        ([True] * 4, (1.0, 0.5), "other"),
    ],
)
def test_share_of_images_that_there_are_none_of_is_refused(positive, share, kind):
    with pytest.raises(UsageError) as caught:
        make(4, share, 9, positive=positive)
    assert "config.data.positive_share" in str(caught.value)
    assert f"asks for {kind} images" in str(caught.value)


@pytest.mark.parametrize(("kind", "share"), [(True, (1, 1)), (False, (0, 0))])
def test_images_of_one_kind_are_enough_where_no_other_is_asked_for(kind, share):
    balanced = make(2, share, 4, positive=[kind] * 4)
    keys = sum(batches_of(balanced, 2, 4), [])
    assert Counter(keys) == {(number, k): 1 for number in (0, 1) for k in range(4)}


def test_order_of_images_as_they_come_is_the_one_of_earlier_runs():
    # A run that is resumed has to find the images where they stood.
    shuffled = ShuffledEpochs(7, 3, seed=SEED)
    for epoch in (0, 1, 9):
        expected = np.random.default_rng((SEED, epoch)).permutation(7)[:6]
        found = [shuffled(6 * epoch + k) for k in range(6)]
        assert found == [(epoch, k) for k in expected]
