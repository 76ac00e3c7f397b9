"""What clients can make the server hold never exceeds its limits."""

from __future__ import annotations

from embedrag.serving.admission import Quota


def test_quota_is_given_back_and_never_exceeded() -> None:
    quota = Quota(5)
    with quota.reserve() as mine, quota.reserve() as other:
        assert mine.grow(3) and other.grow(2)
        assert not mine.grow(1) and not other.grow(1)
        assert quota.used == 5
    assert quota.used == 0
