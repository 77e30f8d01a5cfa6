"""Settings of all tests: no example has a deadline, since a slow machine is no failure."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("shoal", deadline=None)
settings.load_profile("shoal")
