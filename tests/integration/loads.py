"""What the streams of an integration test ask for."""

from __future__ import annotations

from holdfast.chaos.loads import LONG, SCHEMA, every_feature, few_tokens, fresh_salt

__all__ = ["LONG", "SCHEMA", "every_feature", "few_tokens", "fresh_salt"]
