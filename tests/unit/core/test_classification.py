"""Of which class a fault is, why, and what an operator's own rows may say."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.config import HoldfastConfig, dump_config, parse_config
from holdfast.core.errors import BadConfiguration
from holdfast.core.faults.classification import Classifier, OwnRow, default_classifier, fault_of, parse_rows
from holdfast.core.faults.fault_table import SIGNAL_NUMBERS
from holdfast.core.faults.faults import MAX_REQUEST_ID_CHARS, MAX_REQUEST_IDS, FaultClass
from holdfast.core.faults.patterns import compile_pattern
from holdfast.core.faults.redaction import MAX_TEXT_CHARS


def classify(error_type, message):
    return default_classifier().of_error(error_type, message).fault_class


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: device-side assert triggered",
        "CUDA error: unspecified launch failure",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: misaligned address",
        "CUDA error: hardware stack error",
        "CUDA error: an illegal instruction was encountered",
        "CUDA error: invalid program counter",
        "CUDA error: operation not supported on global/shared address space",
        "CUDA error: the launch timed out and was terminated",
        "GPU has fallen off the bus",
        "the DEVICE IS LOST",
    ],
)
def test_an_error_after_which_the_device_is_unusable_is_a_device_fault(message):
    assert classify("AcceleratorError", message) is FaultClass.DEVICE


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "injected fault",
        "index 3 is out of bounds for dimension 0 with size 3",
        "",
    ],
)
def test_any_other_error_is_transient(message):
    assert classify("RuntimeError", message) is FaultClass.TRANSIENT


@pytest.mark.parametrize(
    ("error_type", "message"),
    [
        ("RuntimeError", "Connection closed by peer"),
        ("RuntimeError", "[../third_party/gloo/transport/tcp/pair.cc:534] Read error [127.0.0.1]:4711"),
        ("RuntimeError", "Connection reset by peer"),
        ("DistBackendError", "NCCL communicator was aborted on rank 1."),
        ("DistBackendError", "ncclRemoteError: A call failed possibly due to a network error"),
        ("RankFenced", "whatever it says"),
        ("WorkerFailed", "Worker failed with error 'rank 1 is fenced since epoch 3'"),
    ],
)
def test_what_a_rank_says_that_was_left_alone_is_a_consequence_and_no_cause(error_type, message):
    assert classify(error_type, message) is FaultClass.COMMUNICATOR


@pytest.mark.parametrize(
    ("error_type", "message"),
    [
        ("PeerSilent", "rank 0 did not answer in time; it is taken for hung"),
        ("TimeoutError", "RPC call to execute_model timed out."),
    ],
)
def test_a_rank_that_did_not_answer_is_unresponsive_and_not_to_be_retried(error_type, message):
    assert classify(error_type, message) is FaultClass.UNRESPONSIVE


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error 719",
        "CUDA failure code: 700",
        "cudaErrorIllegalAddress",
        "CUDA_ERROR_ILLEGAL_ADDRESS",
        "CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx",
        "NVRM: Xid (PCI:0000:3b:00): 79, pid=4711, GPU has gone",
        "XID 48",
    ],
)
def test_device_errors_are_known_by_their_names_and_numbers_too(message):
    assert classify("RuntimeError", message) is FaultClass.DEVICE


@pytest.mark.parametrize("message", ["CUDA error 7190", "Xid (PCI:0000:3b:00): 7, x", "XID 4", "719", "XID 480"])
def test_a_number_that_only_looks_like_a_device_error_is_none(message):
    assert classify("RuntimeError", message) is not FaultClass.DEVICE


@pytest.mark.parametrize(
    ("error_type", "message"),
    [
        ("FancyError", "never heard of"),
        ("AcceleratorError", "CUDA error: something new"),
        ("RuntimeError", "CUDA error: something new"),
        ("DistBackendError", "NCCL error: unhandled cuda error (run with NCCL_DEBUG=INFO for details)"),
    ],
)
def test_what_no_row_names_is_unknown_and_so_is_a_device_error_of_which_nobody_has_heard(error_type, message):
    assert classify(error_type, message) is FaultClass.UNKNOWN


@pytest.mark.parametrize(
    ("error_type", "message"), [("NonFiniteLogits", "x"), ("RuntimeError", "NaNs detected in logits: {'a': 3}")]
)
def test_what_is_no_number_is_a_numerical_fault_whoever_found_it(error_type, message):
    assert classify(error_type, message) is FaultClass.NUMERICAL


def test_every_row_says_why():
    for row in default_classifier().rows():
        assert row.reason
        assert len(row.reason) <= 120


@given(st.text(max_size=60), st.text(max_size=3000))
def test_every_error_has_a_class_and_a_reason(error_type, message):
    classification = default_classifier().of_error(error_type, message)
    assert classification.fault_class in FaultClass
    assert classification.reason


@pytest.mark.parametrize("text", ["a" * MAX_TEXT_CHARS, "RPC call to " * 160, "Xid (PCI:" * 200, "CUDA error " * 180])
def test_a_long_message_is_classified_at_once(text):
    began_at = time.process_time()  # other tests share the processors
    default_classifier().of_error("RuntimeError", text)
    assert time.process_time() - began_at < 0.5


def test_a_fault_carries_why_it_is_of_its_class_and_a_bounded_number_of_requests():
    error = ValueError("boom")
    error.request_ids = ["r" * 1000] * 1000
    fault = fault_of(error, default_classifier(), engine_id=3, rank=1)
    assert (fault.engine_id, fault.rank, fault.fault_class) == (3, 1, FaultClass.TRANSIENT)
    assert fault.class_reason.startswith("an exception of Python code")
    assert [len(i) for i in fault.request_ids] == [MAX_REQUEST_ID_CHARS] * MAX_REQUEST_IDS


# ---- how a process ended


@pytest.mark.parametrize(
    ("exit_code", "why"),
    [
        (-9, "memory ran out"),
        (-11, "native code read or wrote where it may not"),
        (-6, "a failed assertion"),
        (-7, "/dev/shm"),
        (-40, "ended by a signal"),
        (1, "an exception that nobody caught"),
        (0, "as if it were done"),
        (137, "128 + 9"),
        (77, "says nothing that is known"),
        (None, "its process is gone"),
    ],
)
def test_the_end_of_a_process_is_a_lost_worker_and_says_what_it_means(exit_code, why):
    classification = default_classifier().of_exit(exit_code)
    assert classification.fault_class is FaultClass.WORKER_LOST
    assert why in classification.reason


# ---- an operator's own rows


def own(*rows):
    return Classifier(parse_rows(rows))


def test_own_rows_come_before_those_that_are_built_in_and_the_first_one_counts():
    classifier = own(
        {"class": "device", "message": "out of memory", "error_type": "OutOfMemoryError"},
        {"class": "transient", "message": "illegal memory access", "reason": "our driver says so for nothing"},
        {"class": "unknown", "message": "illegal memory access"},
    )
    classification = classifier.of_error("RuntimeError", "an Illegal Memory Access was encountered")
    assert (classification.fault_class, classification.reason, classification.is_own) == (
        FaultClass.TRANSIENT,
        "our driver says so for nothing",
        True,
    )
    assert classifier.of_error("OutOfMemoryError", "CUDA out of memory").fault_class is FaultClass.DEVICE
    assert classifier.of_error("RuntimeError", "CUDA out of memory").fault_class is FaultClass.TRANSIENT


def test_the_type_of_an_own_row_is_the_whole_name():
    classifier = own({"class": "device", "error_type": "Fancy"})
    assert classifier.of_error("Fancy", "").fault_class is FaultClass.DEVICE
    assert classifier.of_error("FancyError", "").fault_class is FaultClass.UNKNOWN


def test_own_rows_may_say_what_an_exit_code_or_a_signal_means():
    classifier = own(
        {"class": "device", "exit_code": 43, "reason": "our library found the device gone"},
        {"class": "worker-lost", "signal": "SIGKILL", "reason": "our batch system"},
        {"class": "device", "signal": "SIGKILL", "reason": "the second one of a kind is not looked at"},
    )
    assert classifier.of_exit(43).fault_class is FaultClass.DEVICE
    assert classifier.of_exit(-9).reason == "our batch system"
    assert classifier.of_exit(-11).is_own is False


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("text", "not an object"),
        ({}, "missing required field `class`"),
        ({"class": "nope", "message": "x"}, "classes: communicator, transient"),
        ({"class": "device", "massage": "x"}, "unknown field `massage`"),
        ({"class": "device"}, "it needs error_type or message"),
        ({"class": "device", "message": "x", "exit_code": 3}, "it needs error_type or message"),
        ({"class": "device", "signal": "SIGKILL", "exit_code": 3}, "it needs error_type or message"),
        ({"class": "transient", "exit_code": 3}, "cannot be of class transient, only worker-lost or device"),
        ({"class": "device", "signal": "SIGFOO"}, "no signal is called 'SIGFOO'"),
        ({"class": "device", "exit_code": 256}, "<= 255"),
        ({"class": "device", "message": "("}, "message: no regular expression"),
        ({"class": "device", "error_type": "x" * 301}, "error_type: 301 characters"),
        ({"class": "device", "message": "(a+)+$"}, "can take for ever"),
        ({"class": "device", "message": ".*"}, "matches every text"),
        ({"class": "device", "message": "x", "reason": "r" * 201}, "length <= 200"),
    ],
)
def test_a_bad_row_is_refused_at_start_with_its_number_and_why(row, why):
    with pytest.raises(BadConfiguration) as refused:
        parse_config({"fault_classes": [{"class": "device", "message": "fine"}, row]})
    assert str(refused.value).startswith("fault_classes, row 2 (")
    assert why in str(refused.value)


def test_a_row_that_is_no_text_of_json_is_shown_as_python_writes_it():
    with pytest.raises(BadConfiguration, match=r"row 1 \(\(1\+2j\)\): not an object"):
        parse_rows([1 + 2j])


def test_a_row_that_is_parsed_already_stays_as_it_is():
    row = OwnRow(fault_class=FaultClass.DEVICE, message="x")
    assert parse_rows([row]) == (row,)


@pytest.mark.parametrize(("stated", "why"), [("x", "must be a list"), (3, "must be a list"), ([{}] * 201, "201 rows")])
def test_what_is_no_list_of_rows_or_too_long_a_one_is_refused(stated, why):
    with pytest.raises(BadConfiguration, match=why):
        parse_config({"fault_classes": stated})


def test_rows_reach_the_processes_of_an_instance_as_they_were_stated():
    config = parse_config({"fault_classes": [{"class": "device", "message": "x"}, {"class": "device", "exit_code": 3}]})
    assert config.fault_classes[0] == OwnRow(fault_class=FaultClass.DEVICE, message="x")
    assert parse_config(dump_config(config)) == config
    assert HoldfastConfig().fault_classes == ()


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a|ab)*c", "(a*)*", "(?:a{2,}){3}", "((ab)?c)*d", r"(a)\1", ".*a.*b.*c", "a*b*c*d", "a{0,2000}b+c+"],
)
def test_a_pattern_that_could_backtrack_for_ever_is_refused(pattern):
    with pytest.raises(ValueError, match="take"):
        compile_pattern(pattern)


@pytest.mark.parametrize("pattern", ["(x)?(?(1){}|c)", "(?>{})c"])
def test_a_pattern_is_looked_for_inside_conditions_and_atomic_groups(pattern):
    assert compile_pattern(pattern.format("ab"))
    with pytest.raises(ValueError, match="take"):
        compile_pattern(pattern.format("(a+)+"))


@pytest.mark.parametrize(
    "pattern",
    [
        "out of (memory|space)",
        "a.*b.*c",
        r"code \d{1,4}\b",
        "[ab]*c",
        "x(yz)?",
        "(?i:a)b",
        "(?:abc)+",
        "(x)?(?(1)a|b)",
        "(?>ab)c",
    ],
)
def test_ordinary_patterns_are_fine(pattern):
    assert compile_pattern(pattern)


PIECES = st.sampled_from(
    ["a", "b", ".", "a*", "b+", ".*", "(a|b)", "(ab)*", "(a+)*", "[ab]+", "a?", "a{1,9}", "$", "c"]
)


@given(st.lists(PIECES, min_size=1, max_size=5).map("".join))
def test_whatever_is_let_through_matches_or_not_within_a_bound(pattern):
    try:
        compiled = compile_pattern(pattern)
    except ValueError:
        return
    began_at = time.perf_counter()
    compiled.search("ab" * 100)
    assert time.perf_counter() - began_at < 1.0


def test_signals_have_the_numbers_that_this_system_gives_them():
    import signal

    assert {name: int(getattr(signal, name)) for name in SIGNAL_NUMBERS} == SIGNAL_NUMBERS
