from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from resflow.evaluation import metrics


@st.composite
def answers(draw):
    count, classes = draw(st.integers(1, 30)), draw(st.integers(2, 6))
    logits = draw(arrays(np.float64, (count, classes), elements=st.floats(-50, 50)))
    return logits, draw(arrays(np.int64, count, elements=st.integers(0, classes - 1)))


# three classes; class 2 is never predicted
LOGITS = np.array([[2.0, 1, 0], [2, 1, 0], [0, 1, 0], [3, 0, 0], [0, 5, 1]])
LABELS = np.array([0, 0, 1, 1, 2])


def test_accuracy_is_the_fraction_of_right_answers():
    assert metrics.accuracy(LOGITS, LABELS) == pytest.approx(3 / 5)


def test_confusion_has_true_classes_as_rows_and_predicted_ones_as_columns():
    matrix = metrics.confusion(LOGITS, LABELS)
    assert matrix.tolist() == [[2, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert matrix.dtype == np.int64


def test_precision_recall_and_f1_by_hand_and_zero_where_they_are_0_over_0():
    each = metrics.per_class(np.array([[2, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]))
    assert each.precision == pytest.approx([2 / 3, 1 / 2, 0, 0])
    assert each.recall == pytest.approx([1, 1 / 2, 0, 0])
    assert each.f1 == pytest.approx([4 / 5, 1 / 2, 0, 0])
    assert each.support.tolist() == [2, 2, 1, 0]


def test_negative_log_likelihood_of_equal_logits_is_the_logarithm_of_the_number_of_classes():
    assert metrics.negative_log_likelihood(np.zeros((4, 10)), np.arange(4)) == pytest.approx(np.log(10))


def test_negative_log_likelihood_survives_logits_whose_exponential_overflows():
    logits = np.array([[5000.0, 0.0], [0.0, 5000.0]], dtype=np.float32)
    assert metrics.negative_log_likelihood(logits, np.array([0, 0])) == pytest.approx(2500)


def test_labels_of_uint8_do_not_overflow_with_many_classes():
    logits = np.eye(100)[[99, 98]]
    assert metrics.confusion(logits, np.array([99, 98], dtype=np.uint8))[99, 99] == 1


def test_calibration_error_by_hand():
    # two answers at 0.8 of which one is right, two at 0.6 of which both are: 2/4 * 0.3 + 2/4 * 0.4
    probabilities = np.array([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6], [0.4, 0.6]])
    assert metrics.expected_calibration_error(probabilities, np.array([0, 1, 1, 1]), 10) == pytest.approx(0.35)


def test_one_bin_gives_the_distance_of_mean_confidence_and_accuracy():
    probabilities = metrics.softmax(LOGITS)
    expected = abs(probabilities.max(axis=1).mean() - 3 / 5)
    assert metrics.expected_calibration_error(probabilities, LABELS, 1) == pytest.approx(expected)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below_it():
    table = metrics.calibration(np.array([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]]), np.array([0, 0, 1]), 4)
    assert table.size.tolist() == [0, 1, 1, 1]
    assert table.upper.tolist() == [0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize(
    ("scores", "labels"), [(np.zeros((0, 2)), []), (np.zeros((2, 2)), [0]), (np.zeros((1, 2)), [2]), (np.zeros(2), [0])]
)
def test_scores_and_labels_that_do_not_belong_together_are_refused(scores, labels):
    with pytest.raises(ValueError, match=r"\(N, K\)|outside"):
        metrics.accuracy(scores, np.array(labels, dtype=np.int64))


@given(answers())
def test_probabilities_sum_to_one_and_keep_the_order_of_the_logits(pair):
    probabilities = metrics.softmax(pair[0])
    assert np.allclose(probabilities.sum(axis=1), 1)
    # the first class of the greatest logit has the greatest probability
    best = pair[0].argmax(axis=1)
    assert np.array_equal(probabilities[np.arange(len(best)), best], probabilities.max(axis=1))


@given(answers(), st.floats(-1e6, 1e6))
def test_adding_a_constant_to_the_logits_changes_no_probability(pair, constant):
    assert np.allclose(metrics.softmax(pair[0]), metrics.softmax(pair[0] + constant), atol=1e-6)


@given(answers())
def test_the_confusion_matrix_holds_every_image_once_and_its_diagonal_the_accuracy(pair):
    matrix = metrics.confusion(*pair)
    assert matrix.sum() == len(pair[1])
    assert matrix.trace() / matrix.sum() == pytest.approx(metrics.accuracy(*pair))
    assert metrics.per_class(matrix).support.tolist() == np.bincount(pair[1], minlength=pair[0].shape[1]).tolist()


@given(answers())
def test_f1_is_the_harmonic_mean_of_precision_and_recall(pair):
    each = metrics.per_class(metrics.confusion(*pair))
    total = each.precision + each.recall
    mean = np.divide(2 * each.precision * each.recall, total, out=np.zeros(len(total)), where=total > 0)
    assert np.allclose(each.f1, mean)


def test_macro_f1_is_that_of_the_classes_that_occur():
    """A data set whose labels start at 1 has a class 0 of which nobody has seen an image."""
    never_seen = np.array([[0, 0, 0], [0, 5, 0], [0, 0, 4]])
    assert metrics.macro_f1(never_seen) == 1
    answered_alone = np.array([[0, 0, 0], [1, 4, 0], [0, 0, 4]])
    assert metrics.macro_f1(answered_alone) == pytest.approx((0 + 8 / 9 + 1) / 3)


@given(answers(), st.integers(1, 20))
def test_calibration_counts_every_image_and_its_error_is_a_fraction(pair, bins):
    probabilities = metrics.softmax(pair[0])
    table = metrics.calibration(probabilities, pair[1], bins)
    assert table.size.sum() == len(pair[1])
    full = table.size > 0
    assert (table.lower[full] <= table.confidence[full] + 1e-9).all()
    assert (table.confidence[full] <= table.upper[full] + 1e-9).all()
    assert 0 <= metrics.expected_calibration_error(probabilities, pair[1], bins) <= 1


@given(answers(), st.randoms(use_true_random=False))
def test_the_order_of_the_images_changes_nothing(pair, random):
    order = np.array(random.sample(range(len(pair[1])), len(pair[1])))
    logits, labels = pair
    shuffled = logits[order], labels[order]
    assert np.array_equal(metrics.confusion(*pair), metrics.confusion(*shuffled))
    assert metrics.negative_log_likelihood(*pair) == pytest.approx(metrics.negative_log_likelihood(*shuffled))


def test_wilson_s_interval_is_that_of_the_literature_and_stays_within_0_and_1():
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
    table = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0, 0.1611), (1, 29): (0.0061, 0.1718)}
    for counts, interval in table.items():
        assert metrics.wilson(*counts) == pytest.approx(interval, abs=5e-5)
    assert metrics.wilson(29, 29) == pytest.approx((1 - 0.1170, 1), abs=5e-5)
    with pytest.raises(ValueError, match="3 of 2 is no share"):
        metrics.wilson(3, 2)
