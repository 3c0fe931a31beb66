"""Chats about pictures: streams with their tokens, and the pictures."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import httpx

from holdfast.chaos.loads import fresh_salt
from holdfast.chaos.streams import MODEL_NAME
from support.image_models import picture_url


@dataclass
class Chat:
    """A request for a greedy answer; `picture` is the number of a picture, or None."""

    prompt: str
    picture: int | None = None
    tokens: int = 60
    salt: str = field(default_factory=fresh_salt)
    token_ids: list[int] = field(default_factory=list)
    error: str = ""

    def again(self) -> Chat:
        return Chat(self.prompt, self.picture, self.tokens)

    def body(self) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "text", "text": self.prompt}]
        if self.picture is not None:
            content.insert(0, {"type": "image_url", "image_url": {"url": picture_url(self.picture)}})
        return {
            "model": MODEL_NAME,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
            "cache_salt": self.salt,
        }

    async def run(self, client: httpx.AsyncClient) -> None:
        async with client.stream("POST", "/v1/chat/completions", json=self.body()) as answer:
            if answer.status_code != 200:
                self.error = (await answer.aread()).decode()[:300]
                return
            async for line in answer.aiter_lines():
                self._take(line.removeprefix("data: "))

    def _take(self, line: str) -> None:
        if not line.startswith("{"):
            return
        part = json.loads(line)
        self.error = str(part["error"])[:300] if "error" in part else self.error
        for choice in part.get("choices", ()):
            self.token_ids.extend(choice.get("token_ids") or ())


def chats(first_picture: int = 1, tokens: int = 60) -> list[Chat]:
    """Return a load of chats: pictures of their own, a picture of two chats, and chats without a picture."""
    return [
        Chat("The keeper", None, tokens),
        Chat("A storm crosses the small boat", None, tokens),
        Chat("What holds the boat?", first_picture, tokens),
        Chat("Say more of the signal", first_picture + 1, tokens),
        Chat("And of the bells at dawn", first_picture + 1, tokens),
        Chat("Which way does the river go?", first_picture + 2, tokens),
    ]


class ChatLoad:
    """Chats that are sent at once; what they have received may be read during the run."""

    def __init__(self, url: str, asked: list[Chat], timeout_s: float = 120.0) -> None:
        self._url, self.chats, self._timeout_s = url, [chat.again() for chat in asked], timeout_s

    async def run(self) -> list[Chat]:
        async with httpx.AsyncClient(base_url=self._url, timeout=self._timeout_s, trust_env=False) as client:
            await asyncio.gather(*(chat.run(client) for chat in self.chats))
        return self.chats

    async def until(self, tokens: int) -> None:
        """Wait until every chat has received as many tokens."""
        async with asyncio.timeout(60):
            while min(len(chat.token_ids) for chat in self.chats) < tokens:
                await asyncio.sleep(0.005)


def differences(expected: list[Chat], found: list[Chat]) -> list[str]:
    """Return how the answers differ, in words; empty when they are equal token by token."""
    return [
        f"{number} (picture {want.picture}): {len(got.token_ids)} tokens, {_common(want, got)} as expected; {got.error}"
        for number, (want, got) in enumerate(zip(expected, found, strict=True))
        if want.token_ids != got.token_ids or got.error
    ]


def _common(want: Chat, got: Chat) -> int:
    pairs = zip(want.token_ids, got.token_ids, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(want.token_ids), len(got.token_ids)))
