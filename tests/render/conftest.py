from collections.abc import Iterator

import pytest
from hostile import TOKENS

from .browsing import Browser, chromium


@pytest.fixture
def hostile() -> list[str]:
    """Token strings that no renderer may run, lose, fetch or hide."""
    return list(TOKENS)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as session:
        yield session
