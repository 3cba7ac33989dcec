"""Policies in Lua: the manual's dialect, its API, and what runs them."""
