"""Settings: names, types, bounds, and errors that help."""

import pytest

from holdfast.core.config import HoldfastConfig, dump_config, known_keys, parse_config
from holdfast.core.errors import BadConfiguration


def test_no_settings_are_the_defaults():
    assert parse_config({}) == HoldfastConfig()


def test_settings_survive_dumping_and_parsing():
    config = HoldfastConfig(fault_policy="external", engine_recovery_timeout_s=7.5, runtime_dir="/run/x")
    assert parse_config(dump_config(config)) == config


def test_a_key_is_the_flag_with_underscores_and_names_no_unit():
    assert "engine_recovery_timeout" in known_keys()
    assert not [key for key in known_keys() if key.endswith("_s")]
    assert parse_config({"engine_recovery_timeout": 5}).engine_recovery_timeout_s == 5.0


def test_the_runtime_folder_is_not_for_operators_but_travels():
    assert "runtime_dir" not in known_keys()
    assert "node_count" not in known_keys()
    assert parse_config({"runtime_dir": "/run/x"}).runtime_dir == "/run/x"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("fault-policy", "fault_policy"),
        ("max_retry", "max_retries"),
        ("engine_recovery_timeout_s", "engine_recovery_timeout"),
        ("enable_fault_tolerence", "enable_fault_tolerance"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(typed, meant):
    with pytest.raises(BadConfiguration, match=f"unknown setting '{typed}'") as caught:
        parse_config({typed: 1})
    assert caught.value.hint == f"did you mean {meant!r}?"


def test_a_key_near_to_nothing_lists_what_is_known():
    with pytest.raises(BadConfiguration) as caught:
        parse_config({"zzzzqqqq": 1})
    assert caught.value.hint == "known: " + ", ".join(known_keys())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_retries", -1),
        ("max_retries", 1_000_001),
        ("max_retries", 1.5),
        ("max_retries", "3"),
        ("max_retries", True),
        ("retry_window", 0),
        ("retry_window", -1.0),
        ("retry_window", 86401),
        ("retry_window", float("nan")),
        ("retry_window", float("inf")),
        ("external_fault_notify_port", 65536),
        ("external_fault_notify_port", -2),
        ("fault_policy", "sometimes"),
        ("enable_fault_tolerance", "yes"),
        ("enable_fault_tolerance", None),
    ],
)
def test_a_value_of_the_wrong_type_or_out_of_bounds_is_refused_and_named(key, value):
    with pytest.raises(BadConfiguration, match=rf"\$\.{key}"):
        parse_config({key: value})


def test_leaving_suspect_blocks_needs_fault_injection():
    with pytest.raises(BadConfiguration, match="it needs enable_fault_injection"):
        parse_config({"unsafe_keep_suspect_blocks": True})
    both = {"unsafe_keep_suspect_blocks": True, "enable_fault_injection": True}
    assert parse_config(both).unsafe_keep_suspect_blocks


@pytest.mark.parametrize(
    ("cap", "why"), [("x%", "no share"), ("0%", "above 0%"), ("150%", "at most 100%"), ("4", "nor")]
)
def test_a_share_that_cannot_be_is_refused_with_the_reason(cap, why):
    with pytest.raises(BadConfiguration, match=f"max_ranks_out: .*{why}"):
        parse_config({"max_ranks_out": cap})
