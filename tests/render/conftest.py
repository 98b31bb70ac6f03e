import pytest
from hostile import TOKENS


@pytest.fixture
def hostile() -> list[str]:
    """Token strings that no renderer may run, lose, fetch or hide."""
    return list(TOKENS)
