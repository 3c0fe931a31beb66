"""Questions about incidents between API servers and the owner: an answer crosses in parts, each asked for by itself."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from holdfast.core.errors import HoldfastError, PeerSilent
from holdfast.core.ports import ControlPlane
from holdfast.core.protocol import link_messages as lm

PART_BYTES = 256 << 10
MAX_ANSWERS = 4  # that the owner keeps until their last part is asked for
MAX_ASKED = 64  # questions of a link without an answer
ANSWER_S = 10.0

Tell = Callable[[lm.ToLink], None]
Post = Callable[[Callable[[], None]], None]


class IncidentsForLinks:
    """The owner's side, on the sentinel's thread. An answer is kept while its parts are asked for.

    Args:
        control: has the answers; ends each on any thread.
        post: runs a call on the sentinel's thread.
    """

    def __init__(self, control: ControlPlane, post: Post) -> None:
        self._control = control
        self._post = post
        self._answers: dict[str, bytes] = {}

    def take(self, message: lm.IncidentsAsked, tell: Tell) -> None:
        """Answer a question, now or later. `tell` sends and does not wait."""
        known = self._answers.get(message.question)
        if known is not None:
            self._tell(message, known, tell)
        else:
            answer = self._control.incidents(message.asked)
            answer.add_done_callback(lambda done: self._post(lambda: self._take(message, done, tell)))

    def _take(self, message: lm.IncidentsAsked, answer: Future[bytes], tell: Tell) -> None:
        error = answer.exception()
        if error is None:
            self._tell(message, answer.result(), tell)
        else:
            tell(lm.IncidentsAnswered(question=message.question, error=lm.describe(error)))

    def _tell(self, message: lm.IncidentsAsked, data: bytes, tell: Tell) -> None:
        part = data[message.offset : message.offset + PART_BYTES]
        self._answers.pop(message.question, None)
        if message.offset + len(part) < len(data):
            self._answers[message.question] = data
            for oldest in list(self._answers)[:-MAX_ANSWERS]:
                self._answers.pop(oldest, None)
        answered = lm.IncidentsAnswered(question=message.question, part=part, offset=message.offset, total=len(data))
        tell(answered)


@dataclass
class _Question:
    asked: str
    answer: Future[bytes]
    deadline: float
    data: bytes = b""


class IncidentsFromOwner:
    """The side of a link, on the link's thread: asks part after part.

    A question that the owner does not answer fails with `PeerSilent`.

    Args:
        send: sends a message to the owner, and returns False where the message was not taken.
    """

    def __init__(self, send: Callable[[lm.IncidentsAsked], bool]) -> None:
        self._send = send
        self._open: dict[str, _Question] = {}

    def ask(self, asked: str, answer: Future[bytes]) -> None:
        """Ask the owner; `answer` ends with the answer or an error."""
        question = uuid.uuid4().hex
        if len(self._open) >= MAX_ASKED:
            _fail(answer, PeerSilent(f"{MAX_ASKED} questions about incidents are open", hint="ask again later"))
            return
        self._open[question] = _Question(asked, answer, time.monotonic() + ANSWER_S)
        self._ask_from(question, asked, 0)

    def take(self, message: lm.IncidentsAnswered) -> None:
        """Take a part of an answer."""
        question = self._open.get(message.question)
        if question is None:
            return
        if message.error is not None:
            self._end(message.question, lm.as_error(message.error))
        elif message.offset == len(question.data):  # else a part that came before
            question.data += message.part
            question.deadline = time.monotonic() + ANSWER_S
            if message.part and len(question.data) < message.total:
                self._ask_from(message.question, question.asked, len(question.data))
            else:
                self._end(message.question, None)

    def tick(self, now: float, is_silent: bool) -> None:
        """Fail the questions that the owner leaves unanswered."""
        late = [name for name, question in self._open.items() if is_silent or now >= question.deadline]
        for question in late:
            self._end(question, _silence())

    def _ask_from(self, question: str, asked: str, offset: int) -> None:
        if not self._send(lm.IncidentsAsked(question=question, asked=asked, offset=offset)):
            self._end(question, _silence())

    def _end(self, name: str, error: HoldfastError | None) -> None:
        question = self._open.pop(name, None)
        if question is None:
            return
        if error is not None:
            _fail(question.answer, error)
        elif question.answer.set_running_or_notify_cancel():
            question.answer.set_result(question.data)


def _fail(answer: Future[bytes], error: HoldfastError) -> None:
    if answer.set_running_or_notify_cancel():
        answer.set_exception(error)


def _silence() -> PeerSilent:
    return PeerSilent(
        "the owner of the engine cores does not answer", hint="`holdfast incidents list --folder` reads the folder"
    )
