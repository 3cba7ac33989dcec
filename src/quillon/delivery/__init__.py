"""Delivery: where a message goes, how TLS is enforced on the way, and what becomes of it."""
