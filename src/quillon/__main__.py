"""`python -m quillon`."""

from quillon.cli.main import script

script()
