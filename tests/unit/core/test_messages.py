"""What is said arrives as it was said; anything else is `Undecodable`, and nothing worse."""

import contextlib
from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.config import RuntimeSettings
from holdfast.core.faults.faults import Fault, FaultClass, Phase
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.protocol import messages as m
from holdfast.core.protocol import node_messages as nm
from holdfast.core.protocol.decoding import MAX_MESSAGE_BYTES, Undecodable
from holdfast.core.protocol.messages import Rendezvous

LINKS = {
    "from_worker": (m.FromWorker, m.decode_from_worker),
    "to_worker": (m.ToWorker, m.decode_to_worker),
    "from_engine": (m.FromEngine, m.decode_from_engine),
    "to_engine": (m.ToEngine, m.decode_to_engine),
    "from_agent": (nm.FromAgent, nm.decode_from_agent),
    "to_agent": (nm.ToAgent, nm.decode_to_agent),
}
DECODERS = [decode for _, decode in LINKS.values()]

numbers = st.integers(-(2**63), 2**63 - 1)
ids = st.integers(-(2**31) + 1, 2**31 - 1)
seconds = st.floats(allow_nan=False)
faults = st.builds(Fault, fault_class=st.sampled_from(FaultClass), error_type=st.text(), message=st.text(),
                   engine_id=numbers, rank=st.none() | numbers, phase=st.none() | st.text(),
                   step=st.none() | numbers, at=seconds)  # fmt: skip
specs = st.builds(InjectionSpec, phase=st.sampled_from(Phase), engine_id=ids, rank=ids,
                  after_steps=st.integers(0, 10**6), times=st.integers(1, 1000),
                  request_index=st.integers(0, 10**5), message=st.text(max_size=200))  # fmt: skip
ranks = st.lists(numbers).map(tuple)
reports = st.builds(m.RecoveryReport, requests=numbers, evicted_blocks=numbers, paused_s=seconds, drain_s=seconds,
                    replaced_ranks=ranks, standbys_used=numbers, replace_s=seconds)  # fmt: skip
rendezvous = st.builds(Rendezvous, host=st.text(), port=numbers, epoch=numbers)
configured = st.builds(RuntimeSettings, fault_policy=st.sampled_from(["auto", "external", "dry-run"]),
                       max_retries=st.integers(0, 10**6), retry_window_s=st.floats(0.001, 86400),
                       max_ranks_out=st.integers(0, 10**6) | st.just("25%"))  # fmt: skip
FIELDS = {
    int: numbers,
    bool: st.booleans(),
    str: st.text(),
    bytes: st.binary(),
    str | None: st.none() | st.text(),
    int | None: st.none() | numbers,
    dict[int, int]: st.dictionaries(numbers, numbers, max_size=4),
    tuple[int, ...]: ranks,
    tuple[str, ...]: st.lists(st.text()).map(tuple),
    Fault: faults,
    Fault | None: st.none() | faults,
    Rendezvous | None: st.none() | rendezvous,
    InjectionSpec: specs,
    m.RecoveryReport: reports,
    RuntimeSettings: configured,
    m.Standbys: st.builds(m.Standbys, wanted=numbers, ready=numbers, memory_bytes=numbers),
}


def build(message_type):
    resolve = FIELDS | {tuple[m.WorkerAttached, ...]: st.lists(build(m.WorkerAttached)).map(tuple)} \
        if message_type is m.EngineAttached else FIELDS  # fmt: skip
    fields = {f.name: resolve[f.type] for f in msgspec.structs.fields(message_type)}
    return st.builds(message_type, **fields)


def members(union):
    return get_args(union) or (union,)


EVERY = [(t, decode) for union, decode in LINKS.values() for t in members(union)]


@pytest.mark.parametrize(("message_type", "decode"), EVERY)
@settings(max_examples=40)
@given(data=st.data())
def test_every_message_arrives_as_it_was_sent(message_type, decode, data):
    message = data.draw(build(message_type))
    assert decode(m.encode(message)) == message


@pytest.mark.parametrize(("message_type", "decode"), EVERY)
@settings(max_examples=40)
@given(data=st.data())
def test_a_message_that_was_cut_or_changed_is_a_message_or_undecodable(message_type, decode, data):
    sent = bytearray(m.encode(data.draw(build(message_type))))
    for _ in range(data.draw(st.integers(1, 3))):
        sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(sent[: data.draw(st.integers(0, len(sent)))])
    for received in (bytes(sent), cut):
        with contextlib.suppress(Undecodable):
            assert isinstance(decode(received), msgspec.Struct)


@pytest.mark.parametrize("decode", DECODERS)
@given(garbage=st.binary(max_size=200))
def test_garbage_raises_nothing_but_undecodable(decode, garbage):
    with pytest.raises(Undecodable):
        decode(garbage)


def text(value):
    return bytes([0xA0 | len(value)]) + value.encode()


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("tag", ["engine-faulted", "worker-attached", "retry-engine", "arm-worker-fault"])
@pytest.mark.parametrize("hostile", [b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc1"])
def test_hostile_nesting_and_sizes_are_undecodable(decode, tag, hostile):
    for field in (text("hooks") + hostile, text("fault") + b"\x81" + text("later") + hostile):
        with pytest.raises(Undecodable):
            decode(b"\x82" + text("type") + text(tag) + field)


@pytest.mark.parametrize("decode", DECODERS)
def test_more_bytes_than_the_bound_are_not_even_looked_at(decode):
    with pytest.raises(Undecodable, match="bytes are more than"):
        decode(bytes(MAX_MESSAGE_BYTES + 1))


@pytest.mark.parametrize("link", LINKS)
def test_a_link_refuses_the_messages_of_the_others(link):
    union, decode = LINKS[link]
    for other, _ in EVERY:
        if other not in members(union):
            sent = m.encode(msgspec.convert(_plain(other), other))
            with pytest.raises(Undecodable):
                decode(sent)


def _plain(message_type):
    fault = {"fault_class": "transient", "error_type": "E", "message": "m", "engine_id": 0}
    values = {
        int: 0,
        bool: False,
        str: "x",
        bytes: b"x",
        dict[int, int]: {},
        Fault: fault,
        Fault | None: None,
        InjectionSpec: {"phase": "forward"},
        m.RecoveryReport: {},
        RuntimeSettings: {},
        m.Standbys: {"wanted": 1, "ready": 0, "memory_bytes": 0},
    }
    needed = [f for f in msgspec.structs.fields(message_type) if f.required]
    tag = message_type.__struct_config__.tag
    return {"type": tag} | {f.name: values.get(f.type, ()) for f in needed}


def test_every_message_has_a_tag_of_its_own():
    tags = [t.__struct_config__.tag for t, _ in EVERY]
    assert len(set(tags)) == len(tags)


def test_a_rendezvous_is_shown_without_its_secret():
    shown = repr(m.Rendezvous("127.0.0.1", 1234, 7, secret="hidden"))
    assert shown == "Rendezvous(127.0.0.1:1234, epoch 7)"
