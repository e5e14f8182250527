"""Recipes, and how the results of their runs get into ``results/`` and onto the pages."""
