"""Restart intensity: how often a repair may be tried within a window, and which tries count.

Pure. Limits come from the settings at each use, never from the moment when a try was made: settings may change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from holdfast.core.config import HoldfastConfig
from holdfast.core.poison.numerics import Named

MAX_BACKOFF_S = 30.0
MAX_NAMED = 16
# An unknown error mostly leaves the process intact: a single retry is cheap. After a second unknown error in a row
# the state may be damaged, so the rank gets a new process before the retry budget is used up.
MAX_UNKNOWN_RETRIES = 1
NOT_OPEN = math.inf  # the opening time of an incident that is not open


@dataclass(frozen=True)
class Intensity:
    """Restart intensity of a kind of repair: at most `limit` tries within `window_s` seconds.

    `tries` names what is counted, `flag` the setting that bounds the number.
    """

    tries: str
    limit: int
    window_s: float
    flag: str

    def counts(self, tried_at: float, now: float, opened_at: float = NOT_OPEN) -> bool:
        """Return whether a try is within the window, or belongs to the incident that is open since `opened_at`.

        Without the second rule, tries that take longer than the window would never be used up.
        """
        return now - tried_at < self.window_s or tried_at >= opened_at

    def exhausted(self, used: int) -> str | None:
        """Return why no further try is allowed after `used` tries, None while a further try is allowed."""
        if used < self.limit:
            return None
        return f"{used} {self.tries} within {self.window_s:g} s did not last ({self.flag} {self.limit})"


@dataclass(frozen=True)
class Budget:
    """Times at which a kind of repair was tried (seconds, oldest first)."""

    tried_at: tuple[float, ...] = ()

    @property
    def last_at(self) -> float:
        """Return the time of the last try, minus infinity before the first try."""
        return self.tried_at[-1] if self.tried_at else -math.inf

    def recent(self, intensity: Intensity, now: float, opened_at: float = NOT_OPEN) -> Budget:
        """Return the budget with only the tries that count now."""
        return Budget(tuple(at for at in self.tried_at if intensity.counts(at, now, opened_at)))

    def used(self, intensity: Intensity, now: float, opened_at: float = NOT_OPEN) -> int:
        """Return how many tries count now."""
        return len(self.recent(intensity, now, opened_at).tried_at)

    def spend(self, intensity: Intensity, now: float, opened_at: float = NOT_OPEN) -> Budget:
        """Return the budget after a further try, without the tries that no longer count."""
        return Budget((*self.recent(intensity, now, opened_at).tried_at, now))

    def refund(self, tries: int) -> Budget:
        """Return the budget without the last tries."""
        return Budget(self.tried_at[:-tries])

    def shared_with(self, other: Budget) -> Budget:
        """Return the budget with only the tries that another budget has as well."""
        return Budget(tuple(at for at in self.tried_at if at in other.tried_at))


@dataclass
class GroupBudgets:
    """Budgets of a lockstep group. Outlasts the group's incidents.

    `unknown_retries` are the retries after a fault of class unknown. `named_requests` holds the requests that
    numerical faults named in the present processes, with the time of the retry.
    """

    retries: Budget = Budget()
    unknown_retries: Budget = Budget()
    worker_restarts: Budget = Budget()
    named_requests: tuple[Named, ...] = ()

    def note_named(self, names: tuple[str, ...], now: float) -> None:
        """Record a retry after a numerical fault that named requests; the latest `MAX_NAMED` records stay."""
        if names:
            self.named_requests = (*self.named_requests, (now, names))[-MAX_NAMED:]

    def forget_retries(self) -> None:
        """Forget every retry, because later retries run in another process."""
        self.retries = self.unknown_retries = Budget()
        self.named_requests = ()

    def refund(self, tries: int) -> None:
        """Take back the last tries after the cause has ended: retries, or worker restarts where no retry is left."""
        self.named_requests = ()
        if self.retries.tried_at:
            self.retries = self.retries.refund(tries)
            self.unknown_retries = self.unknown_retries.shared_with(self.retries)
        else:
            self.worker_restarts = self.worker_restarts.refund(tries)


def retry_intensity(config: HoldfastConfig) -> Intensity:
    return Intensity("retries", config.max_retries, config.retry_window_s, "--max-retries")


def unknown_retry_intensity(config: HoldfastConfig) -> Intensity:
    return Intensity("retries of unknown errors", MAX_UNKNOWN_RETRIES, config.retry_window_s, "at most")


def worker_restart_intensity(config: HoldfastConfig) -> Intensity:
    limit, window_s = config.max_worker_restarts, config.worker_restart_window_s
    return Intensity("worker restarts", limit, window_s, "--max-worker-restarts")


def engine_restart_intensity(config: HoldfastConfig) -> Intensity:
    limit, window_s = config.max_engine_restarts, config.engine_restart_window_s
    return Intensity("engine core restarts", limit, window_s, "--max-engine-restarts")


def process_restart_intensity(config: HoldfastConfig) -> Intensity:
    limit, window_s = config.max_api_server_restarts, config.api_server_restart_window_s
    return Intensity("restarts", limit, window_s, "--max-api-server-restarts")


def backoff_s(tries: int) -> float:
    """Return the exponential backoff before the next try after `tries`: 0, 1, 2, 4 s, at most `MAX_BACKOFF_S`."""
    return min(MAX_BACKOFF_S, 2.0 ** (tries - 1)) if tries else 0.0
