"""The split for validation is stratified, disjoint, complete, and decided by its seed."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from resflow.data.idx import Bytes
from resflow.data.split import stratified

any_labels = arrays(np.uint8, st.integers(1, 300), elements=st.integers(0, 4))
any_fraction = st.floats(0.01, 0.99)
any_seed = st.integers(0, 2**32 - 1)


@given(any_labels, any_fraction, any_seed)
def test_every_image_is_in_one_of_the_two_in_the_order_of_the_file(labels: Bytes, fraction: float, seed: int) -> None:
    train, validation = stratified(labels, fraction, seed)
    assert sorted([*train, *validation]) == list(range(len(labels)))
    assert list(train) == sorted(train)
    assert list(validation) == sorted(validation)


@given(any_labels, any_fraction, any_seed)
def test_each_class_gives_its_share_and_is_in_both(labels: Bytes, fraction: float, seed: int) -> None:
    train, validation = stratified(labels, fraction, seed)
    for label in np.unique(labels):
        given_up, kept = int((labels[validation] == label).sum()), int((labels[train] == label).sum())
        assert kept >= 1
        assert given_up >= 1 or kept == 1
        assert abs(given_up - fraction * (given_up + kept)) <= 0.5 or given_up == 1 or kept == 1


@given(any_labels, any_fraction, any_seed)
def test_the_same_seed_gives_the_same_split(labels: Bytes, fraction: float, seed: int) -> None:
    for once, again in zip(stratified(labels, fraction, seed), stratified(labels, fraction, seed), strict=True):
        assert np.array_equal(once, again)


def test_another_seed_gives_another_split() -> None:
    labels = np.repeat(np.arange(10, dtype=np.uint8), 50)
    assert not np.array_equal(stratified(labels, 0.1, 0)[1], stratified(labels, 0.1, 1)[1])


def test_the_split_of_a_seed_is_the_same_in_every_version() -> None:
    labels = np.arange(1000, dtype=np.uint32) * 7919 % 10
    _, validation = stratified(labels.astype(np.uint8), 0.05, 0)
    assert validation[:5].tolist() == [2, 3, 11, 20, 48]
    assert hashlib.sha256(validation.astype("<i8").tobytes()).hexdigest()[:16] == "bd3c432e8e627bf5"
