"""Whole sentences of refused settings, as an operator reads them."""

import re

import pytest

from holdfast.core.config import (
    HoldfastConfig,
    SettingChange,
    change_settings,
    changeable_keys,
    parse_config,
    share_of,
)
from holdfast.core.errors import BadConfiguration
from holdfast.core.faults.classification import Classification, Classifier, parse_rows
from holdfast.core.faults.fault_table import SIGNAL_NUMBERS, UNKNOWN_ERROR
from holdfast.core.faults.faults import FaultClass
from holdfast.core.faults.patterns import compile_pattern

CAN_BE_CHANGED = f"can be changed: {', '.join(changeable_keys())}"
NESTED = "a repeat or a choice inside a repeat can take for ever to match; write it without"
EXAMPLE = 'for example [{"message": "my driver is gone", "class": "device"}]'


def refusal(settings):
    with pytest.raises(BadConfiguration) as caught:
        parse_config(settings)
    return str(caught.value)


def test_a_far_key_still_names_the_key_that_was_probably_meant():
    assert (
        refusal({"prefill_budget": 1}) == "unknown setting 'prefill_budget' (did you mean 'recovery_prefill_tokens'?)"
    )


def test_a_change_of_no_setting_names_those_that_can_be_changed():
    with pytest.raises(BadConfiguration) as caught:
        change_settings(HoldfastConfig(), {})
    assert str(caught.value) == f"no setting is named ({CAN_BE_CHANGED})"


def test_a_change_of_a_fixed_setting_names_those_that_can_be_changed():
    with pytest.raises(BadConfiguration) as caught:
        change_settings(HoldfastConfig(), {"check_logits": True})
    assert str(caught.value) == f"check_logits is fixed at the start of the server ({CAN_BE_CHANGED})"


def test_a_changed_number_of_seconds_is_shown_without_needless_zeros():
    assert str(SettingChange(name="retry_window", old=60.0, new=2.5)) == "retry_window 60 -> 2.5"


@pytest.mark.parametrize(
    ("cap", "why"),
    [
        ("25", "'25' is neither a number of ranks nor a share such as '25%'"),
        ("many%", "'many%' is no share such as '25%'"),
        ("0%", "'0%' is not above 0% and at most 100%"),
        ("150%", "'150%' is not above 0% and at most 100%"),
    ],
)
def test_a_cap_that_is_no_share_is_refused_with_the_reason(cap, why):
    with pytest.raises(ValueError) as caught:
        share_of(cap)
    assert str(caught.value) == why
    assert refusal({"max_ranks_out": cap}) == f"max_ranks_out: {why}"


def test_both_unsafe_settings_are_named_when_fault_injection_is_off():
    assert refusal({"unsafe_skip_fence": True, "unsafe_keep_suspect_blocks": True}) == (
        "unsafe_keep_suspect_blocks and unsafe_skip_fence makes answers wrong and is for tests only "
        "(it needs enable_fault_injection)"
    )


def test_a_fallback_without_the_external_policy_is_refused_with_both_values():
    assert refusal({"external_fallback": "auto", "fault_policy": "dry-run"}) == (
        "external_fallback auto makes no sense with fault_policy dry-run (it goes with external)"
    )


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("x", f"fault_classes must be a list of rows ({EXAMPLE})"),
        ([7], f"fault_classes, row 1 (7): not an object ({EXAMPLE})"),
        (
            [{"class": "transient", "mesage": "x"}],
            'fault_classes, row 1 ({"class":"transient","mesage":"x"}): Object contains unknown field `mesage` '
            "(keys: class, error_type, message, exit_code, signal, reason)",
        ),
    ],
)
def test_rows_that_cannot_be_read_are_refused_with_the_row_and_what_a_row_looks_like(rows, sentence):
    with pytest.raises(BadConfiguration) as caught:
        parse_rows(rows)
    assert str(caught.value) == sentence


def test_as_many_rows_as_are_allowed_are_read():
    assert len(parse_rows([{"class": "transient", "message": "x"}] * 200)) == 200


def reason_of(row):
    with pytest.raises(BadConfiguration) as caught:
        parse_rows([row])
    return str(caught.value)


def test_a_row_for_errors_and_ends_at_once_is_refused_with_what_a_row_needs():
    assert reason_of({"class": "device", "message": "x", "exit_code": 3}) == (
        'fault_classes, row 1 ({"class":"device","message":"x","exit_code":3}): '
        "it needs error_type or message or both, or else one of exit_code and signal"
    )


def test_a_row_for_an_unknown_signal_is_refused_with_the_signals_there_are():
    assert reason_of({"class": "device", "signal": "SIGNONE"}) == (
        'fault_classes, row 1 ({"class":"device","signal":"SIGNONE"}): '
        f"no signal is called 'SIGNONE'; there are {', '.join(SIGNAL_NUMBERS)}"
    )


def test_a_row_that_cannot_be_shown_as_json_is_shown_as_python_shows_it():
    with pytest.raises(BadConfiguration) as caught:
        parse_rows([set])
    assert str(caught.value) == f"fault_classes, row 1 (<class 'set'>): not an object ({EXAMPLE})"


@pytest.mark.parametrize(("length", "shown"), [(158, '"' + 158 * "x" + '"'), (159, '"' + 156 * "x" + "...")])
def test_a_long_row_is_shown_up_to_160_characters(length, shown):
    assert reason_of(length * "x") == f"fault_classes, row 1 ({shown}): not an object ({EXAMPLE})"


def test_own_rows_say_that_they_are_of_the_operator_for_errors_and_for_ends():
    classifier = Classifier(
        parse_rows([{"class": "device", "message": "gone"}, {"class": "device", "exit_code": 43, "reason": "why"}])
    )
    assert classifier.of_error("E", "it is GONE") == Classification(FaultClass.DEVICE, "by a row of your own", True)
    assert classifier.of_error("E", "it is here").fault_class is FaultClass.UNKNOWN
    assert classifier.of_error("E", "it is here").reason == UNKNOWN_ERROR.reason
    assert classifier.of_exit(43) == Classification(FaultClass.DEVICE, "why", True)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (301 * "a", "301 characters are more than 300"),
        ("(", "no regular expression: missing ), unterminated subpattern at position 0"),
        (r"(a)\1", "a reference to a group can take too long to match"),
        ("(a+)+", NESTED),
        ("a*b*c*d", "more than 2 unbounded repeats (*, + or more than 64) take too long"),
        (r"(a)(?:(?(1)b+|c))+", NESTED),
        (r"(a)(?:(?(1)c|b+))+", NESTED),
        ("(?:a*){2}", NESTED),
        ("x(?:a*b*c*|d)", "more than 2 unbounded repeats (*, + or more than 64) take too long"),
        ("a?", "it matches every text, also an empty one"),
    ],
)
def test_a_pattern_is_refused_with_the_reason(pattern, why):
    with pytest.raises(ValueError) as caught:
        compile_pattern(pattern)
    assert str(caught.value) == why


@pytest.mark.parametrize(
    "pattern",
    [
        300 * "a",
        "a*b*c",
        "a{0,64}b*c*d",
        "(?:ab){1}(?:c|d)",
        "(?:a|b){1}",
        "(?:a*){1}b",
        r"(a)(?:(?(1)c))+",
        "(?:xa*){0,1}b",
    ],
)
def test_a_pattern_at_the_bound_is_accepted_and_ignores_case(pattern):
    assert compile_pattern(pattern).flags & re.IGNORECASE
