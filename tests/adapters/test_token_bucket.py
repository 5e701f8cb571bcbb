"""A set rate holds over every short time, whatever was or was not sent before it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hyperha.replication.token_bucket import BURST_MS, TokenBucket

MIB = 1 << 20
RATE = 8 * MIB
STEPS = st.lists(st.tuples(st.integers(0, 5000), st.integers(1 << 16, MIB)), max_size=30)


def pour(bucket: TokenBucket, rate: int, begun_ms: int, for_ms: int, step: int = MIB) -> int:
    """Bytes that go through in a time in which there is always something to send."""
    sent = 0
    for now_ms in range(begun_ms, begun_ms + for_ms):
        while bucket.may_go(rate, now_ms):
            bucket.spend(step)
            sent += step
    return sent


@given(STEPS)
def test_over_no_time_more_than_the_rate_goes_through(steps: list[tuple[int, int]]) -> None:
    bucket, now_ms = TokenBucket(0), 0
    sent: list[tuple[int, int]] = []
    for passed_ms, size in steps:
        now_ms += passed_ms
        while bucket.may_go(RATE, now_ms):
            bucket.spend(size)
            sent.append((now_ms, size))
    largest = max((size for _, size in sent), default=0)
    for first, (begun_ms, _) in enumerate(sent):
        total = 0
        for at_ms, size in sent[first:]:
            total += size
            assert total <= RATE * (at_ms - begun_ms + BURST_MS) / 1000 + largest


@given(st.integers(1, 1000), st.integers(1 << 16, MIB))
def test_who_always_has_something_to_send_gets_the_rate(rate_mib_s: int, step: int) -> None:
    """Also with steps larger than the credit; and the wait that is told is not too long."""
    bucket, rate, now_ms, sent = TokenBucket(0), rate_mib_s * MIB, 0, 0
    while now_ms < 1000:
        while bucket.may_go(rate, now_ms):
            bucket.spend(step)
            sent += step
        now_ms += max(1, int(bucket.due_in_ms()))
    assert rate * 0.99 <= sent <= rate * 1.1 + step


def test_a_quiet_stretch_is_no_credit() -> None:
    """Ten minutes in which both copies were equal."""
    bucket = TokenBucket(0)
    assert bucket.may_go(RATE, 0) is False
    assert pour(bucket, RATE, 600_000, 1000) <= RATE + RATE * BURST_MS // 1000 + MIB


def test_a_rate_that_is_set_or_changed_on_the_way_counts_from_then_on() -> None:
    bucket = TokenBucket(0)
    for _ in range(1000):
        assert bucket.may_go(0, 10), "no rate is set"
        bucket.spend(MIB)
    assert bucket.due_in_ms() == 0
    assert pour(bucket, RATE, 10, 1000, 1 << 16) >= RATE * 9 // 10
    slow = pour(bucket, MIB, 1010, 2000, 1 << 16)
    assert MIB <= slow <= 2 * MIB + RATE * BURST_MS // 1000
