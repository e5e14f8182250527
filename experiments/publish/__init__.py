"""From finished runs to ``results/``, and from there to the tables of the pages."""
