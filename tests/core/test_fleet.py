"""The order in which many modules start (a few at a time, low priority numbers first)."""

from __future__ import annotations

from hyperha.core.fleet import AT_ONCE, PATIENCE_MS, Others, Waiting, admitted, missing

NOBODY = Others(frozenset(), frozenset())


def _waiting(number: int, priority: int = 100, after: tuple[str, ...] = ()) -> Waiting:
    return Waiting(f"m{number}", number, priority, after, 1000)


def test_a_few_at_a_time_in_the_order_of_priority_and_number() -> None:
    all_of_them = [_waiting(number) for number in range(8, 2, -1)]
    assert admitted([*all_of_them, _waiting(9, 1)], 0, NOBODY, 1000) == ("m9", "m3", "m4", "m5")
    assert admitted(all_of_them, AT_ONCE - 1, NOBODY, 1000) == ("m3",)
    assert admitted(all_of_them, AT_ONCE, NOBODY, 1000) == ()
    assert admitted(all_of_them, AT_ONCE + 1, NOBODY, 1000) == ()


def test_who_needs_another_one_waits_while_it_is_coming() -> None:
    web = _waiting(1, after=("db", "mail"))
    coming = Others(frozenset(), frozenset({"db"}))
    assert missing(web, coming, 1000) == ("db",)
    assert admitted([web, _waiting(2)], 0, coming, 1000) == ("m2",)
    ready = Others(frozenset({"db"}), frozenset({"db"}))
    assert admitted([web], 0, ready, 1000) == ("m1",)
    assert admitted([web], 0, NOBODY, 1000) == ("m1",), "nobody waits for what is stopped"


def test_but_not_for_ever() -> None:
    web = _waiting(1, after=("db",))
    coming = Others(frozenset(), frozenset({"db"}))
    assert admitted([web], 0, coming, 999 + PATIENCE_MS) == ()
    assert admitted([web], 0, coming, 1000 + PATIENCE_MS) == ("m1",)
