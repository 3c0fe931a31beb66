"""Verdicts of the matrix of features and faults: nothing that is wrong is called exact."""

from __future__ import annotations

import json

import pytest

from holdfast.bench.incident import Window
from holdfast.chaos.history import History
from support.features.asks import Mode, mode_of, take_document
from support.features.columns import Column
from support.features.loads import obeys_regex, obeys_schema
from support.features.page import put_into, records_of, section, shortcomings
from support.features.rows import PLAIN, ROWS, FeatureRow
from support.features.runner import Record
from support.features.servers import believe
from support.features.verdicts import Cell, Pair, Result, interruption_steps, judge, not_repeated, step_s, was_under_way

WINDOW = Window(fault_s=10.0, recovered_s=11.0)


def answer(name="a", tokens=(1, 2, 3), at=(9.0, 12.0, 12.1), **fields):
    return History(name, 8.0, list(tokens), list(at), text="one", finish_reason="length", **fields)


def ended(error):
    return History("a", 8.0, [1], [9.0], error=error)


def cell_of(observed, *, reference=None, others=True, unwell=None, valid=None):
    return judge([Pair(reference or answer(), observed, valid)], others_are_exact=others, unwell=unwell)


def test_an_answer_like_the_fault_free_one_is_exact():
    assert cell_of(answer()) == Cell(Result.EXACT)


def test_an_answer_without_a_seed_is_exact_by_the_oracle_only():
    read = {"is_unseeded": True, "logprobs": [-1.0] * 3, "read_again_logprobs": [-1.0] * 3}
    assert cell_of(answer(tokens=(4, 5, 6), **read)).result is Result.BY_ORACLE
    assert cell_of(answer(**{**read, "read_again_logprobs": [-1.0, -4.0, -1.0]})).result is Result.BROKEN
    assert cell_of(answer(**{**read, "read_again_logprobs": None})).result is Result.BROKEN


def test_a_greedy_answer_by_the_oracle_has_the_likeliest_tokens():
    read = {"is_unseeded": True, "logprobs": [-1.0] * 3, "read_again_logprobs": [-1.0] * 3}
    best, worse = answer(**read, read_again_best=[-1.0] * 3), answer(**read, read_again_best=[-1.0, -0.4, -1.0])
    assert Pair(answer(), best, is_greedy=True).reasons() == ()
    assert Pair(answer(), worse, is_greedy=True).reasons() == ("1 tokens are not the likeliest, the first at 1",)
    assert Pair(answer(), worse).reasons() == ()


@pytest.mark.parametrize("tokens", [(1, 2), (1, 2, 4), (1, 2, 2, 3)])
def test_tokens_lost_changed_or_repeated_are_broken(tokens):
    assert cell_of(answer(tokens=tokens)).result is Result.BROKEN


def test_an_error_is_an_end_alone_where_the_others_are_exact_and_the_instance_is_well():
    assert cell_of(ended("500: adapter not found")).result is Result.ENDS_ALONE
    assert cell_of(ended("500: adapter not found"), others=False).result is Result.BROKEN
    assert cell_of(ended("500: adapter not found"), unwell="/health answers 503").result is Result.BROKEN


@pytest.mark.parametrize("error", ["no end within 150 s", "ReadError: ", "the stream ended without a finish reason"])
def test_silence_is_no_end_alone(error):
    assert cell_of(ended(error)).result is Result.BROKEN


def test_an_unseeded_answer_under_a_grammar_obeys_it_and_is_at_least_as_likely_as_without():
    drawn = answer(is_unseeded=True, logprobs=[-0.1] * 3, read_again_logprobs=[-3.0] * 3)
    assert cell_of(drawn, valid=lambda text: text == "one").result is Result.BY_ORACLE
    assert cell_of(drawn, valid=lambda text: False).result is Result.BROKEN
    drawn.read_again_logprobs = [-0.1, -0.1, 0.0]
    assert cell_of(drawn, valid=lambda text: True).result is Result.BROKEN


def test_what_the_host_does_not_repeat_is_found_without_the_unseeded_answers():
    first = {"a": answer("a"), "b": answer("b", is_unseeded=True)}
    second = {"a": answer("a", tokens=(1, 2, 4)), "b": answer("b", tokens=(7, 7, 7), is_unseeded=True)}
    assert list(not_repeated(first, second)) == ["a"]


def test_a_step_is_the_time_between_outputs_however_many_tokens_one_has():
    assert step_s([answer(tokens=range(5), at=(1.0, 1.0, 1.0001, 3.0, 3.0))]) == pytest.approx(1.0)
    assert step_s([History("document", 1.0, arrivals_s=[3.0])]) == 2.0


def test_an_interruption_is_counted_in_steps_without_the_prompt():
    pair = Pair(answer(at=(8.5, 8.6, 8.7)), answer())
    assert interruption_steps([pair], WINDOW, 0.1, reads_prompt=True) == 25.0  # half a second for the prompt
    assert interruption_steps([pair], WINDOW, 0.1, reads_prompt=False) == 30.0
    assert interruption_steps([Pair(answer(), answer(at=()))], WINDOW, 0.1, reads_prompt=True) is None


def test_an_answer_that_ended_before_the_fault_shows_nothing():
    assert was_under_way(answer(), WINDOW)
    assert not was_under_way(answer(at=(9.0, 9.1, 9.2)), WINDOW)


def test_documents_are_compared_without_what_every_run_gives_anew():
    def taken(document):
        history = History("d", 0.0)
        take_document(history, document)
        return history.text, history.logprobs

    first = {"id": "x1", "created": 5, "choices": [{"token_ids": [1, 2], "logprob": -0.25}]}
    assert taken(first) == taken({**first, "id": "x2", "created": 6})
    assert taken(first)[1] == [-0.25]
    assert taken(first)[0] != taken({**first, "choices": [{"token_ids": [1, 3], "logprob": -0.25}]})[0]


def test_modes_of_sampling():
    assert [mode_of(0, None), mode_of(0.5, 3), mode_of(0.5, None)] == [Mode.GREEDY, Mode.SEEDED, Mode.UNSEEDED]


def test_the_grammars_of_the_rows():
    assert obeys_regex("storm" + " boat" * 9 + ".")
    assert not obeys_regex("storm.")
    assert obeys_schema(json.dumps({"weather": "calm", "boats": ["red"] * 6, "safe": True}))
    assert not obeys_schema('{"weather": "calm"')


@pytest.mark.parametrize(("unreliable", "result"), [({"a", "b"}, Result.HOST_FAILS), (set(), Result.BROKEN)])
def test_wrong_answers_are_the_host_s_own_where_plain_vllm_gives_wrong_ones_too(unreliable, result):
    wrong, unwell = cell_of(answer(tokens=(1, 2))), cell_of(answer(), unwell="/health answers 503")
    record = Record("row", {"hang": {"greedy": wrong, "seeded": unwell, "unseeded": Cell(Result.EXACT)}})
    believe(record, unreliable)
    assert "plain" not in record.document()
    record.plain = {"unlikely": {"a": "2 tokens"}}
    assert record.document()["plain"] == record.plain
    assert [cell.result for cell in record.cells["hang"].values()] == [result, Result.BROKEN, Result.EXACT]


# ---- the page


def record(result=Result.EXACT, steps=2.0, columns=tuple(Column), unrepeated=None, **cell):
    of_mode = {"result": str(result), "steps": steps, **cell}
    cells = {str(column): {"greedy": of_mode} for column in columns}
    return {"row": "plain", "step_ms": 5.0, "unrepeated": unrepeated or {}, "cells": cells}


def document(**records):
    return {"rows": [{"item": name, "commit": "abc1234", "detail": json.dumps(one)} for name, one in records.items()]}


def row(name, needs="", note=""):
    return FeatureRow(name, PLAIN.asks, needs=needs, note=note)


def test_the_table_shows_every_row_and_what_was_not_run():
    made = section(document(plain=record()), [row("plain"), row("other")])
    assert "| plain | exact | exact | exact |" in made
    assert "Rows that were not run yet: other.\n" in made


def test_the_section_names_broken_cells_unrepeated_answers_and_what_would_be_needed():
    one = record(Result.BROKEN, columns=[Column.HANG], unrepeated={"seeded pair#0": "2 tokens changed"})
    made = section(document(plain=one), [row("plain", needs="a copy of the cache", note="on CPUs only")])
    assert "broken in hang (greedy)" in made
    assert "differ in seeded pair#0" in made
    assert "- **plain**: a copy of the cache.\n" in made
    assert "- **plain**: on CPUs only.\n" in made


def test_the_section_replaces_the_one_before():
    made = section(document(plain=record()), [row("plain")])
    page = put_into("before\n<!-- features: begin -->\nold\n<!-- features: end -->\nafter\n", made)
    assert page == f"before\n{made}\nafter\n"


def test_a_matrix_as_promised_has_no_shortcomings():
    assert shortcomings({"plain": record()}, [row("plain")]) == []


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (record(Result.BROKEN, why="tokens lost"), "broken: tokens lost"),
        (record(Result.ENDS_ALONE), "no sentence says what would be needed"),
        (record(Result.HOST_FAILS, steps=7.0), "interrupted for 7 steps, the plain row for 2"),
    ],
)
def test_shortcomings_are_told(other, said):
    assert any(said in one for one in shortcomings({"plain": record(), "other": other}, [row("plain"), row("other")]))


def test_a_row_that_was_not_run_is_a_shortcoming():
    assert shortcomings({}, [row("plain")]) == ["plain: not run"]


def test_rows_without_a_record_and_the_row_about_all_count_as_not_run():
    assert records_of({"rows": [{"item": "plain", "detail": "Traceback"}, {"item": "all rows", "detail": "{}"}]}) == {}


def test_names_of_rows_are_unique_and_every_answer_of_a_row_has_a_name_of_its_own():
    assert len({one.name for one in ROWS}) == len(ROWS)
    for one in ROWS:
        names = [name for ask in one.asks("salt") for name in ask.names]
        assert len(names) == len(set(names)), one.name
