"""The composition root: a supervisor, and workers that put the parts together."""
