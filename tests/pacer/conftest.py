"""A host for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pacer.virtual import Host


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.close()
