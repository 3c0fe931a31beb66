"""The page in a real browser: login, faults, commands, lost connections; axe, keyboard, phone, dark."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from browser.conftest import PageServer, Watched, fresh_control
from holdfast.core.faults.faults import FaultClass
from holdfast.core.protocol import messages as m

pytestmark = pytest.mark.browser

Open = Callable[..., Watched]
LIGHT, DARK = {"color_scheme": "light"}, {"color_scheme": "dark"}
PHONE = {"color_scheme": "light", "viewport": {"width": 360, "height": 780}, "has_touch": True}
LOOKS = pytest.mark.parametrize("look", [LIGHT, DARK, PHONE], ids=["light", "dark", "phone"])


def test_the_page_shows_nothing_before_the_login_and_names_a_wrong_token(served: PageServer, open_page: Open) -> None:
    seen = open_page()
    seen.log_in(served.url, "wrong")
    seen.reads("[role=alert]", "the token is wrong")
    assert served.control.view().instance_id[:8] not in seen.page.content()
    assert seen.page.locator(".verdict").count() == 0
    seen.log_in(served.url)
    seen.reads(".verdict", "Serves normally")


def test_a_fault_is_seen_and_an_instruction_ends_it(served: PageServer, open_page: Open) -> None:
    seen = open_page().open(served.url)
    served.control.break_down(2)
    seen.reads(".verdict", "Waits for you: engine 2")
    seen.reads(".answers", "InjectedFault: injected fault")
    seen.reads(".answers", "injected on purpose")
    seen.reads(".answers .next", "Press Retry")
    served.control.obedient = True
    seen.page.get_by_role("button", name="Retry…").click()
    seen.reads("dialog .effect", "Rewinds the requests of engine 2")
    assert [s for s in served.control.sent if isinstance(s.message, m.RecoverEngine)] == []
    seen.page.get_by_role("button", name="Retry", exact=True).click()
    seen.reads(".verdict", "Serves normally")
    seen.reads(".answers", "8 requests went on")
    seen.reads(".outcome", "recovered")
    assert [s.engine_id for s in served.control.sent if isinstance(s.message, m.RecoverEngine)] == [2]


def test_the_chart_of_a_single_recovery_spans_seconds(served: PageServer, open_page: Open) -> None:
    seen = open_page().open(served.url)
    module = "await import('/fault_tolerance/page/chart.js')"
    assert seen.page.evaluate(f"async () => ({module}).padded({{ data: [[1000]] }})") == [995, 1005]


def test_a_command_says_which_engines_it_takes_along_and_why_it_is_not_possible(
    served: PageServer, open_page: Open
) -> None:
    seen = open_page().open(served.url)
    seen.page.get_by_role("button", name="Engine 1 healthy").click()
    seen.page.locator("dialog").get_by_role("button", name="Pause…").click()
    seen.reads("dialog .effect", "Pauses engines 0, 1 at once")
    seen.page.keyboard.press("Escape")
    seen.page.get_by_role("button", name="Resume…").click()
    seen.reads("dialog", "Not possible now")
    assert seen.page.locator("dialog button[type=submit].primary").is_disabled()


def test_settings_are_changed_and_a_refusal_is_shown(served: PageServer, open_page: Open) -> None:
    seen = open_page().open(served.url)
    seen.page.get_by_role("button", name="Settings…").click()
    seen.page.get_by_label("max_retries").fill("-3")
    seen.page.get_by_role("button", name="Change").click()
    seen.reads("dialog [role=alert]", "max_retries")
    seen.page.get_by_label("max_retries").fill("42")
    seen.reads("dialog .effect", "max_retries: 10 → 42")
    seen.page.get_by_role("button", name="Change").click()
    seen.reads(".budgets", "42 of 42 left")
    assert served.control.config.max_retries == 42


def test_a_page_that_lost_its_server_says_so_and_catches_up(served: PageServer, open_page: Open) -> None:
    """As after the death of an API server: another one answers on the same port, with the same instance."""
    seen = open_page().open(served.url)
    assert served.stop() < 5, "an open page does not delay the end of the server"
    seen.reads(".live", "no connection since")
    served.control.break_down(3)
    served.start()
    seen.reads(".live", "live")
    seen.reads(".verdict", "Waits for you: engine 3")
    assert seen.page.locator(".incidents > li").count() == 1


def test_a_page_forgets_an_instance_that_was_restarted(served: PageServer, open_page: Open) -> None:
    served.control.break_down(3)
    seen = open_page().open(served.url)
    seen.reads(".verdict", "Waits for you: engine 3")
    served.stop()
    served.control = fresh_control()
    served.start()
    seen.reads(".verdict", "Serves normally")
    assert seen.page.locator(".incidents > li").count() == 0


@LOOKS
def test_axe_finds_nothing_and_nothing_is_cut_off(served: PageServer, open_page: Open, look: dict[str, object]) -> None:
    seen = open_page(**look)
    seen.page.goto(served.url)
    seen.page.get_by_label("Control token").wait_for()
    assert seen.findings() == []
    served.control.break_down(0, FaultClass.DEVICE)
    served.control.hold(1)
    seen.open(served.url)
    seen.reads(".verdict", "Waits for you")
    seen.page.locator(".incidents summary").first.click()
    assert seen.findings() == []
    assert seen.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    for name in ("Pause…", "Restart worker…", "Settings…"):
        seen.page.get_by_role("button", name=name).click()
        assert seen.findings() == [], name
        seen.page.keyboard.press("Escape")


def test_everything_can_be_done_with_the_keyboard(served: PageServer, open_page: Open) -> None:
    seen = open_page()
    seen.page.goto(served.url)
    seen.page.get_by_label("Control token").focus()
    seen.page.keyboard.type("secret")
    seen.page.keyboard.press("Enter")
    seen.page.locator(".verdict").wait_for()
    reached = []
    for _ in range(20):
        seen.page.keyboard.press("Tab")
        reached.append(seen.page.evaluate("document.activeElement.innerText"))
        if reached[-1] == "Pause…":
            break
    assert reached[-1] == "Pause…"
    seen.page.keyboard.press("Enter")
    seen.reads("dialog .effect", "Pauses engines 0–3")
    seen.page.keyboard.press("Escape")
    assert seen.page.evaluate("document.activeElement.innerText") == "Pause…"


def test_nothing_comes_from_another_host_and_no_policy_is_violated(served: PageServer, open_page: Open) -> None:
    seen = open_page().open(served.url)
    served.control.break_down(2)
    seen.reads(".verdict", "Waits for you")
    origin = served.url.removesuffix("fault_tolerance/")
    assert [url for url in seen.asked if not url.startswith(origin)] == []
    assert seen.complaints == []
    seen.page.get_by_role("button", name="Log out").click()
    seen.page.get_by_label("Control token").wait_for()
    assert seen.page.context.cookies() == []
