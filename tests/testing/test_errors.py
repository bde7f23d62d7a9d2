from __future__ import annotations

from aioredismq import testing
from aioredismq._errors import MessageQueueError


def test_what_testing_raises_is_under_the_root_of_the_package() -> None:
    """One `except MessageQueueError` covers a server that cannot be started, too."""
    assert issubclass(testing.ServerStartError, MessageQueueError)
    assert issubclass(testing.NoServerFoundError, testing.ServerStartError)
