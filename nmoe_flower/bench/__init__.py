"""Measure the engines: ``nmoe bench rounds``."""
