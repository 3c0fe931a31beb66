"""Vocabulary of the small models, and the tokenizer trained on sentences made of it.

Owns the vocabulary. Never imports the host; heavy libraries are imported where they are used.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from holdfast.chaos.recipes import Recipe

END_TOKEN = "<|end|>"

WORD_MARK = "\u0120"  # how byte-level BPE writes the space that opens a word

_NOUNS = (
    "river boat keeper engine harbour lantern crew storm signal rope tide word light mast anchor morning chance way "
    "island bridge captain letter window garden mountain station clock kitchen market forest summer winter thread "
    "compass pilot valley shadow mirror ladder bottle candle hammer needle pocket ribbon saddle timber vessel whistle"
)
_VERBS = (
    "carries holds remembers follows repairs watches answers finds loses measures crosses keeps opens paints gathers "
    "borrows catches draws explains forgets guards hears invites joins knows lifts mends notices offers passes reaches"
)
_ADJECTIVES = (
    "small old quiet broken second long early bright careful distant empty faithful gentle hidden iron lucky narrow "
    "open patient rusty silver steady tall useful warm yellow"
)
_ENDINGS = (
    "at dawn|without a sound|before the rain|in good order|once more|as promised|under the stars|by hand|"
    "after midnight|along the shore|between two bells|toward the north|with great care|until the evening"
)
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def _sentences(recipe: Recipe, count: int = 6000) -> Iterator[str]:
    draw = random.Random(recipe.seed)
    nouns, verbs, adjectives = _NOUNS.split(), _VERBS.split(), _ADJECTIVES.split()
    for _ in range(count):
        subject, thing = (f"the {draw.choice(adjectives)} {draw.choice(nouns)}" for _ in range(2))
        yield f"{subject} {draw.choice(verbs)} {thing} {draw.choice(_ENDINGS.split('|'))}. "


def write_tokenizer(folder: Path, recipe: Recipe) -> list[str]:
    """Train and save the byte-level BPE tokenizer; return the tokens by id."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[END_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(recipe), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", _tokenizer_config(recipe))
    ids: dict[str, int] = tokenizer.get_vocab()
    if len(ids) != recipe.vocabulary:
        raise RuntimeError(f"the sentences yield {len(ids)} tokens, the recipe requires {recipe.vocabulary}")
    return sorted(ids, key=ids.__getitem__)


def _tokenizer_config(recipe: Recipe) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_TOKEN,
        "model_max_length": recipe.positions,
        "clean_up_tokenization_spaces": False,
        "chat_template": _CHAT_TEMPLATE,
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def is_word(token: str) -> bool:
    """Return whether a token is a whole word with the space before it."""
    return token.startswith(WORD_MARK) and token[1:] in _WORDS


_WORDS = frozenset(f"{_NOUNS} {_VERBS} {_ADJECTIVES} {_ENDINGS.replace('|', ' ')} the".split())
