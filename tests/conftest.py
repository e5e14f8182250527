"""Shared by all tests: examples are the same in every run, and a slow machine fails nothing."""

from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True, database=None)
settings.load_profile("steady")
