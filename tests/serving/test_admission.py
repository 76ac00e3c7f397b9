"""What clients can make the server hold never exceeds its limits."""

from __future__ import annotations

import pytest

from embedrag.serving.admission import LONGEST_WAIT, Admission, Quota
from embedrag.serving.openai_protocol import ApiError


def test_quota_is_given_back_and_never_exceeded() -> None:
    quota = Quota(5)
    with quota.reserve() as mine, quota.reserve() as other:
        assert mine.grow(3) and other.grow(2)
        assert not mine.grow(1) and not other.grow(1)
        assert quota.used == 5
    assert quota.used == 0


def admission(limit: int, texts_in_a_second: float) -> Admission:
    found = Admission(limit)
    found.open(0, lambda texts: texts / texts_in_a_second)
    return found


def wait(found: Admission, texts: int, size: int = 0) -> int:
    """Seconds that a refused request is told to wait."""
    with (
        pytest.raises(ApiError, match="try again in") as error,
        found.bytes.reserve() as held,
        found.admit(texts, size, held),
    ):
        pass
    assert error.value.status == 429 and error.value.retry_after
    return error.value.retry_after


def test_refused_clients_are_not_all_told_to_come_at_the_same_time() -> None:
    found = admission(1000, 10)
    with found.bytes.reserve() as held, found.admit(1000, 0, held):
        assert [wait(found, 100) for _ in range(4)] == [13, 25, 38, 50]
        assert [wait(found, 100) for _ in range(20)][-1] == LONGEST_WAIT


def test_wait_is_never_longer_than_the_whole_queue_needs() -> None:
    """Clients that never come again can't make the others wait."""
    found = admission(1000, 100)
    with found.bytes.reserve() as held, found.admit(1000, 0, held):
        assert max(wait(found, 100) for _ in range(100)) == 13
        assert wait(found, 1, size=found.bytes.limit + 1) == 13
    with found.bytes.reserve() as held, found.admit(1, 0, held):
        assert wait(found, 1, size=found.bytes.limit + 1) == 1
