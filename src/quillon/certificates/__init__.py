"""Certificates of our own that renew themselves: asked for by ACME, and put in place in the right order."""
