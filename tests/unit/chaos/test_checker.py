"""The checker: no difference between two runs escapes it, and waits are measured as clients feel them."""

from __future__ import annotations

import pytest

from holdfast.chaos.checker import (
    compare_histories,
    compare_runs,
    count_differences,
    interruption_s,
    longest_gap_s,
    spread_of,
)
from holdfast.chaos.history import History


def history(
    tokens: list[int], *, name: str = "one", arrivals: list[float] | None = None, finish: str | None = "length"
) -> History:
    times = arrivals if arrivals is not None else [float(n) for n in range(len(tokens))]
    text = " ".join(map(str, tokens))
    return History(name, 0.0, token_ids=list(tokens), arrivals_s=times, text=text, finish_reason=finish)


def test_equal_runs_are_exact() -> None:
    """The same tokens, text and ending are exact."""
    comparison = compare_runs([history([1, 2, 3])], [history([1, 2, 3])])
    assert comparison.exact
    assert comparison.reasons == ()


@pytest.mark.parametrize(
    ("seen", "lost", "repeated", "changed"),
    [
        ([1, 2, 3, 4, 5], 0, 0, 0),
        ([1, 2, 3], 2, 0, 0),
        ([1, 2, 4, 5], 1, 0, 0),
        ([1, 2, 2, 3, 4, 5], 0, 1, 0),
        ([1, 2, 3, 2, 3, 4, 5], 0, 2, 0),
        ([1, 2, 9, 4, 5], 0, 0, 1),
        ([1, 2, 9, 3, 4, 5], 0, 0, 1),
        ([], 5, 0, 0),
        ([7, 8, 9], 2, 0, 3),
    ],
)
def test_differences_are_counted_by_kind(seen: list[int], lost: int, repeated: int, changed: int) -> None:
    """A missing, a doubled and a foreign token are told apart."""
    assert count_differences([1, 2, 3, 4, 5], seen) == (lost, repeated, changed)


def test_any_difference_in_tokens_is_inexact() -> None:
    """However differences are counted, unequal tokens never pass."""
    comparison = compare_histories(history([1, 2, 3]), history([1, 3, 2]))
    assert not comparison.exact
    assert comparison.lost + comparison.repeated + comparison.changed > 0


def unseeded(
    tokens: list[int], *, sampled: list[float], read: list[float] | None, finish: str | None = "length"
) -> History:
    answer = history(tokens, finish=finish)
    answer.is_unseeded, answer.logprobs, answer.read_again_logprobs = True, sampled, read
    return answer


def test_an_unseeded_answer_is_exact_when_the_model_reads_it_as_it_was_sampled() -> None:
    reference = unseeded([1, 2], sampled=[-1.0, -2.0], read=[-1.0, -2.0])
    other_tokens = unseeded([7, 8], sampled=[-0.5, -3.0], read=[-0.51, -2.96])
    assert compare_histories(reference, other_tokens).exact


@pytest.mark.parametrize(
    ("observed", "reason"),
    [
        (unseeded([7, 8], sampled=[-0.5, -3.0], read=[-0.5, -2.9]), "1 tokens are not the model's own, the first at 1"),
        (unseeded([7, 8], sampled=[-0.5, -3.0], read=None), "the answer was not read again"),
        (unseeded([7], sampled=[-0.5], read=[-0.5]), "1 tokens instead of 2"),
        (unseeded([7, 8], sampled=[-0.5], read=[-0.5]), "1 logprobs for 2 tokens"),
        (unseeded([7, 8], sampled=[-0.5, -1.0], read=[-0.5, -1.0], finish="stop"), "finished with 'stop'"),
    ],
    ids=["another logprob", "never read", "a token lost", "a logprob lost", "another end"],
)
def test_an_unseeded_answer_that_is_not_the_models_own_is_wrong(observed: History, reason: str) -> None:
    comparison = compare_histories(unseeded([1, 2], sampled=[-1.0, -2.0], read=[-1.0, -2.0]), observed)
    assert not comparison.exact
    assert any(reason in said for said in comparison.reasons)


def test_a_changed_token_is_located() -> None:
    """The reason names the first position that differs."""
    comparison = compare_histories(history([1, 2, 3]), history([1, 9, 3]))
    assert "1 tokens changed, the first at 1" in comparison.reasons


def test_a_missing_answer_loses_all_its_tokens() -> None:
    """An answer that never came counts as lost entirely."""
    comparison = compare_runs([history([1, 2, 3])], [])
    assert (comparison.exact, comparison.lost) == (False, 3)


def test_an_answer_nobody_asked_for_is_wrong() -> None:
    """An answer without a reference is not exact."""
    assert not compare_runs([history([1])], [history([1]), history([2], name="two")]).exact


def test_nothing_compared_is_not_exact() -> None:
    """An empty run proves nothing."""
    comparison = compare_runs([], [])
    assert not comparison.exact
    assert comparison.reasons == ("nothing was compared",)


def test_an_error_is_a_reason_even_with_all_tokens() -> None:
    """Equal tokens do not excuse an error."""
    observed = history([1, 2])
    observed.error = "boom"
    assert not compare_histories(history([1, 2]), observed).exact


def test_a_failed_reference_proves_nothing() -> None:
    """Two runs that fail alike are not a success."""
    one, other = history([1]), history([1])
    one.error = other.error = "boom"
    assert not compare_histories(one, other).exact


def test_another_ending_is_a_reason() -> None:
    """A different finish reason is reported."""
    comparison = compare_histories(history([1]), history([1], finish="stop"))
    assert comparison.reasons == ("finished with 'stop' instead of 'length'",)


def test_logprobs_may_differ_by_rounding_only() -> None:
    """Rounding passes, another value does not."""
    one, near, far = history([1]), history([1]), history([1])
    one.logprobs, near.logprobs, far.logprobs = [-1.0], [-1.0001], [-1.1]
    assert compare_histories(one, near).exact
    assert not compare_histories(one, far).exact


# ---- waits


def test_interruption_spans_the_fault() -> None:
    """Last token before the fault to first token after it."""
    answer = history([1, 2, 3, 4], arrivals=[1.0, 2.0, 5.0, 6.0])
    assert interruption_s(answer, answer, fault_s=2.5, recovered_s=4.0) == 3.0


def test_a_token_on_its_way_does_not_shorten_the_interruption() -> None:
    """A token that arrives just after the fault hides nothing."""
    answer = history([1, 2, 3, 4], arrivals=[1.0, 2.0, 2.6, 6.0])
    assert interruption_s(answer, answer, fault_s=2.5, recovered_s=4.0) == pytest.approx(3.4)


def test_waits_after_the_recovery_do_not_count() -> None:
    """A slow token later is no interruption."""
    answer = history([1, 2, 3, 4], arrivals=[1.0, 2.0, 3.0, 9.0])
    assert interruption_s(answer, answer, fault_s=1.5, recovered_s=2.5) == 1.0
    assert longest_gap_s(answer) == 6.0


def test_before_the_first_token_the_added_delay_counts() -> None:
    """A first step that fails makes the first token come later than in the fault-free run."""
    reference = history([1, 2], arrivals=[1.5, 1.6])
    answer = history([1, 2], arrivals=[4.0, 4.1])
    assert interruption_s(reference, answer, fault_s=1.0, recovered_s=2.0) == 2.5


def test_the_added_delay_is_never_less_than_the_standstill() -> None:
    """A slow reference does not hide the time in which the engine was paused."""
    reference = history([1, 2], arrivals=[5.0, 5.1])
    answer = history([1, 2], arrivals=[4.0, 4.1])
    assert interruption_s(reference, answer, fault_s=1.0, recovered_s=2.0) == 1.0


def test_an_answer_that_had_ended_was_not_interrupted() -> None:
    """What ended before the fault has no interruption."""
    answer = history([1, 2], arrivals=[1.0, 2.0])
    assert interruption_s(answer, answer, fault_s=3.0, recovered_s=4.0) is None


def test_an_answer_without_a_token_has_no_measured_wait() -> None:
    """What never came is lost, not late."""
    answer = history([])
    assert interruption_s(answer, answer, fault_s=3.0, recovered_s=4.0) is None


def test_spread_of_one_value_is_that_value() -> None:
    """A single measurement has no spread."""
    spread = spread_of([2.0])
    assert (spread.median, spread.interquartile_range) == (2.0, 0.0)


def test_spread_has_median_bounds_and_quartiles() -> None:
    """Median, bounds and quartiles include both ends."""
    spread = spread_of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (spread.minimum, spread.quartile_low, spread.median, spread.quartile_high, spread.maximum) == (1, 2, 3, 4, 5)
