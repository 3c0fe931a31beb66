"""Texts of exceptions without user data: whatever an exception formats, no prompt and no token is left."""

from __future__ import annotations

import os
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.errors import RecoveryFailed
from holdfast.core.faults import redaction
from holdfast.core.faults.classification import default_classifier, fault_of
from holdfast.core.faults.faults import Fault, FaultClass
from holdfast.core.faults.redaction import MAX_TEXT_CHARS, WITHHELD, Account, PublicText, account_of, place_of, text_of
from holdfast.core.protocol import messages as m

PROMPT = "Dear doctor, my password is hunter2"
TOKENS = [31373, 11, 616, 9206]
FAULTED = "CUDA error: an illegal memory access was encountered"


class _Own(Exception):
    def __init__(self, what: object) -> None:
        super().__init__(f"the request cannot be scheduled: {what}")


def caught(site) -> Account:
    """Return the account of what a function raises."""
    try:
        site()
    except Exception as error:
        return account_of(error)
    raise AssertionError("nothing was raised")


# ---- exceptions of Python code


def _formatted(what=PROMPT):
    raise ValueError(f"bad prompt {what!r} for {len(TOKENS)} tokens")


def _percent():
    raise ValueError("the prompt %s has the tokens %s" % (PROMPT, TOKENS))  # noqa: UP031


def _format():
    raise ValueError("the prompt {} is too long".format(PROMPT) + str(TOKENS))  # noqa: UP032


def _format_first():
    text = "{} is no good {}"
    raise ValueError(text.format(PROMPT, TOKENS))


def _made_before():
    text = f"The prompt {PROMPT} is not allowed"
    if PROMPT:
        raise ValueError(text)


def _asserted(size=0.5):
    assert not PROMPT, f"no room for {PROMPT} of size {size:.2f}"


def _own_class():
    raise _Own(PROMPT)


def _bare():
    raise RuntimeError(PROMPT)


def _only_punctuation(what=PROMPT):
    raise RuntimeError(f"{what}: {TOKENS}")


def _with_key(known={"prompt": PROMPT}):  # noqa: B006
    raise RuntimeError(f"refused: {known['prompt']} at {TOKENS[0]}")


def _caused(what="12x"):
    try:
        int(what)
    except ValueError as error:
        raise RecoveryFailed(f"restoring failed: {error}") from error


def _handed_on():
    try:
        _formatted()
    except ValueError as error:
        raise RuntimeError(str(error)) from error


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (_formatted, "bad prompt <...> for 4 tokens"),
        (_percent, "the prompt <...> has the tokens <...>"),
        (_format, "the prompt <...> is too long<...>"),
        (_format_first, "<...> is no good <...>"),
        (_made_before, "The prompt <...> is not allowed"),
        (_asserted, "no room for <...> of size <...>"),
        (_own_class, "the request cannot be scheduled: <...>"),
        (_bare, WITHHELD),
        (_only_punctuation, WITHHELD),
        (_with_key, "refused: <...> at <...>"),
        (_caused, "restoring failed: invalid literal for int() with base 10: <...>"),
        (_handed_on, "bad prompt <...> for 4 tokens"),
    ],
)
def test_the_words_of_the_code_are_kept_and_its_values_are_not(site, message):
    account = caught(site)
    assert account.message == message
    assert account.full_text


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("rank", 3, "3"),
        ("rank", 1234567890, "<...>"),
        ("rank", PROMPT, "<...>"),
        ("rank", [1, 2], "<...>"),
        ("token", 3, "<...>"),
        ("timeout_s", 0.25, "0.25"),
        ("dtype", "torch.bfloat16", "torch.bfloat16"),
        ("device", "cuda:0", "cuda:0"),
        ("shape", "torch.Size([2, 3])", "torch.Size([2, 3])"),
        ("shape", "torch.Size(['x'])", "<...>"),
        ("num_blocks", None, "None"),
    ],
)
def test_a_value_is_kept_when_its_name_and_its_shape_are_harmless(name, value, shown):
    code = f"def site({name}):\n    raise ValueError(f'it is {{{name}}} here')"
    namespace: dict = {}
    exec(code, namespace)
    assert caught(lambda: namespace["site"](value)).message == f"it is {shown} here"


class _Model:
    rank = 7
    size = PROMPT
    token = 5


def test_the_name_of_an_attribute_counts_and_not_that_of_its_object():
    def site(model):
        raise ValueError(f"at {model.rank} with {model.size} and {model.token} or {max(model.rank, 1)}")

    assert caught(lambda: site(_Model())).message == "at 7 with <...> and <...> or <...>"


def test_a_text_that_can_be_divided_in_several_ways_keeps_no_value():
    def site(prompt, rank):
        raise ValueError(f"said {prompt} of rank {rank}")

    assert caught(lambda: site("it", 2)).message == "said <...> of rank 2"
    assert caught(lambda: site("it of rank 5", 2)).message == "said <...> of rank <...>"


def test_values_side_by_side_are_one():
    def site(rank, prompt):
        raise ValueError(f"said {rank}{prompt} there")

    assert caught(lambda: site(1, 2)).message == "said <...> there"


def test_a_line_of_several_becomes_one():
    def site(prompt):
        raise ValueError(f"""not this:
            {prompt}
        but another""")

    assert caught(lambda: site(PROMPT)).message == "not this: <...> but another"


def test_values_at_both_ends_of_a_text():
    def site(prompt, device):
        raise ValueError(f"{prompt} is not on {device}")

    assert caught(lambda: site(PROMPT, "cuda:1")).message == "<...> is not on cuda:1"


def test_words_that_are_cut_off_at_the_bound_are_left_out():
    def site(prompt):
        raise ValueError(f"the prompt {prompt} is too long")

    account = caught(lambda: site("x" * 3 * MAX_TEXT_CHARS))
    assert account.message == "the prompt <...>"
    assert len(account.full_text) == MAX_TEXT_CHARS


# ---- exceptions of native code, and sentences of the system


def _missing_key():
    {}[PROMPT]


def _no_integer():
    int(PROMPT)


def _no_file():
    os.stat(f"/nonexistent/{PROMPT}")


def _no_attribute():
    PROMPT.no_such_thing  # noqa: B018


def _foreign_attribute():
    getattr(PROMPT, PROMPT)


class _Taker:
    @staticmethod
    def take(what):
        pass


def callee(what):
    pass


def _missing_argument():
    _Taker.take()


def _unexpected_argument():
    _Taker.take(**{PROMPT: 1})


def _too_many_arguments():
    callee(PROMPT, TOKENS)


def _no_index():
    TOKENS[9]


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (_missing_key, WITHHELD),
        (_no_integer, "invalid literal for int() with base 10: <...>"),
        (_no_file, "[Errno 2] No such file or directory<...>"),
        (_no_attribute, "'str' object has no attribute 'no_such_thing'"),
        (_foreign_attribute, "'str' object has no attribute '<...>'"),
        (_no_index, "list index out of range"),
        (_missing_argument, "<...>take() missing 1 required positional argument: <...>"),
        (_unexpected_argument, "<...>take() got an unexpected keyword argument '<...>'"),
        (_too_many_arguments, "callee() takes 1 positional argument but 2 were given"),
    ],
)
def test_of_an_error_of_native_code_known_sentences_are_kept(site, message):
    assert caught(site).message == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FAULTED, FAULTED),
        (f"{FAULTED} {PROMPT}", f"{FAULTED} <...>"),
        (f"CUDA error: {PROMPT}", WITHHELD),
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", "CUDA out of memory. Tried to allocate <...>.<...> GiB."),
        ("injected fault", "injected fault"),
        ("[Errno 28] No space left on device", "[Errno 28] No space left on device"),
        (f"[Errno 28] {PROMPT}", WITHHELD),
        ("[Errno 999] Unknown error 999", WITHHELD),
        ("too many values to unpack (expected 2)", "too many values to unpack (expected <...>)"),
    ],
)
def test_of_a_text_from_anywhere_known_sentences_are_kept_without_numbers(text, message):
    assert account_of(RuntimeError(text)).message == message


def test_of_an_error_of_torch_sizes_are_kept_and_indices_are_not():
    sentence = redaction.known_sentence("index 31373 is out of bounds for dimension 0 with size 4", (), by_code=False)
    assert sentence == "index <...> is out of bounds for dimension 0 with size 4"
    memory = "CUDA out of memory. GPU 0 has a total capacity of 9.8 GiB of which 1 GiB is free."
    assert redaction.known_sentence(memory, (), by_code=False) == memory


# ---- what an account says beside the text


def test_the_place_is_a_file_a_line_and_a_function():
    assert caught(_bare).place.endswith(f"unit/core/test_redaction.py:{_bare.__code__.co_firstlineno + 1} _bare")
    assert place_of(ValueError("never raised")) == ""


def test_a_place_in_a_package_is_told_from_the_package_on():
    namespace: dict = {}
    exec(compile("def f():\n    raise ValueError", "/env/lib/site-packages/vllm/v1/core.py", "exec"), namespace)
    assert caught(namespace["f"]).place == "vllm/v1/core.py:2 f"


def test_a_text_that_says_nothing_of_a_user_is_whole_and_not_kept_twice():
    def site():
        raise ValueError("the pool is empty")

    assert caught(site)[1:2] + caught(site)[3:] == ("the pool is empty", "")
    assert account_of(ValueError(PublicText("it is mine"))) == Account("ValueError", "it is mine")
    assert account_of(ValueError()) == Account("ValueError", "no message")


def test_an_account_in_one_line_is_type_and_message():
    assert str(account_of(ValueError(PROMPT))) == f"ValueError: {WITHHELD}"


def test_a_message_is_told_on_one_line():
    assert text_of(ValueError("a\n  b\tc")) == "a b c"
    assert text_of(ValueError("half a pair: \ud800")) == "half a pair: ?"


def test_an_error_whose_text_raises_is_described_all_the_same():
    class Broken(Exception):
        def __str__(self):
            raise RuntimeError

    assert account_of(Broken()).full_text == "no message: its text raises RuntimeError"


def test_a_type_whose_name_is_made_of_something_else_is_not_named():
    assert account_of(type(PROMPT, (Exception,), {})()).error_type == "Exception"


def test_a_redaction_that_fails_withholds_the_text(monkeypatch):
    monkeypatch.setattr(redaction, "redact", lambda *_: 1 / 0)
    assert caught(_formatted).message == WITHHELD


def test_without_positions_in_the_code_the_constants_of_the_function_are_looked_for(monkeypatch):
    code = "def site(what):\n    raise ValueError(f'bad thing {what} in here')"
    namespace: dict = {}
    exec(code, namespace)
    site = namespace["site"]
    units = len(site.__code__.co_code) // 2
    a_line_without_columns = bytes([0x80 | 13 << 3, 0])
    site.__code__ = site.__code__.replace(co_linetable=a_line_without_columns * units)
    account = caught(lambda: site(PROMPT))
    assert account.message == "bad thing <...> in here"


def test_a_fault_has_its_class_from_the_whole_text_and_shows_the_rest_only_in_full():
    try:
        raise RuntimeError(f"{PROMPT} CUDA error: device-side assert triggered")
    except RuntimeError as error:
        fault = fault_of(error, default_classifier(), engine_id=0)
    assert fault.fault_class is FaultClass.DEVICE
    assert PROMPT not in fault.message
    assert PROMPT not in repr(fault)
    assert fault.full_text == f"{PROMPT} CUDA error: device-side assert triggered"


# ---- properties

VALUES = st.one_of(
    st.text(alphabet=st.characters(codec="utf-8"), min_size=6),
    st.lists(st.integers(10_000, 200_000), min_size=2),
    st.binary(min_size=6),
    st.integers(10**10, 10**30),
    st.dictionaries(st.text(min_size=6), st.integers(), min_size=1),
)
SITES = [
    lambda v: _raise(ValueError(v)),
    _formatted,
    _only_punctuation,
    lambda v: {}[v if isinstance(v, (str, bytes, int)) else str(v)],
    lambda v: int(str(v) + "x"),
    lambda v: _raise(_Own(v)),
    lambda v: _caused(str(v) + "x"),
    lambda v: getattr(None, str(v)),
]


def _raise(error):
    raise error


@given(value=VALUES, site=st.sampled_from(SITES))
def test_no_value_survives(value, site):
    account = caught(lambda: site(value))
    for secret in (" ".join(str(value).split()), repr(value)[1:-1]):
        # A secret that is itself a part of the code's own words says nothing of a user.
        assert len(secret) < 6 or secret not in account.message
    assert len(account.message) <= 2 * MAX_TEXT_CHARS


@given(st.text(alphabet=st.characters(codec=None), max_size=3000))
def test_whatever_an_error_says_can_be_sent(text):
    account = account_of(RuntimeError(text))
    sent = Fault(
        fault_class=FaultClass.TRANSIENT,
        error_type=account.error_type,
        message=account.message,
        full_text=account.full_text or msgspec.UNSET,
        engine_id=0,
    )
    m.encode(m.EngineFaulted(engine_id=0, epoch=0, fault=sent))
    assert 0 < len(account.message) <= MAX_TEXT_CHARS


def test_an_account_takes_milliseconds_however_long_function_and_text_are():
    lines = "\n".join(f"    if n == {n}: raise ValueError(f'the thing {{n}} of {{w}} number {n}')" for n in range(5000))
    namespace: dict = {}
    exec(f"def site(n, w):\n{lines}", namespace)
    try:
        namespace["site"](4999, "the thing of " * 10_000)
    except ValueError as error:
        began = time.process_time()
        account = account_of(error)
        took_s = time.process_time() - began
    assert account.message.startswith("the thing <...> of ")
    assert took_s < 0.5  # traced; of a hundred thousand instructions, twenty times the longest function of the host
