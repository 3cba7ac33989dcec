"""Streams, clock and resolver: where octets, time and names come from."""
