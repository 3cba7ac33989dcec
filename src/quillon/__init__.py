"""Quillon: a mail transfer agent that enforces TLS and can prove it."""

__version__ = "0.1.0"
