"""What all tests share."""

from hypothesis import settings

# The same examples on every machine, however slow: a test that fails, fails again.
settings.register_profile("unmask", deadline=None, derandomize=True)
settings.load_profile("unmask")
