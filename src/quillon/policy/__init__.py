"""Policy: hook points, contexts, and the scripts that decide."""
