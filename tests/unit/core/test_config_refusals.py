"""Whole sentences of refused settings, as an operator reads them."""

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
from holdfast.core.faults.classification import parse_rows

CAN_BE_CHANGED = f"can be changed: {', '.join(changeable_keys())}"
EXAMPLE = 'for example [{"message": "my driver is gone", "class": "device"}]'


def refusal(settings):
    with pytest.raises(BadConfiguration) as caught:
        parse_config(settings)
    return str(caught.value)


def test_a_far_key_still_names_the_key_that_was_probably_meant():
    assert refusal({"max_wrkr_rstrt": 1}) == "unknown setting 'max_wrkr_rstrt' (did you mean 'max_worker_restarts'?)"


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
