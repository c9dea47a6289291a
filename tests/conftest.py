"""What all tests share."""

import pytest
from hypothesis import settings

# The same examples on every machine, however slow: a test that fails, fails again.
settings.register_profile("unmask", deadline=None, derandomize=True)
settings.load_profile("unmask")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """What tests keep, they keep for themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNMASK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
