"""Listeners: sockets and the sessions that clients open on them."""
