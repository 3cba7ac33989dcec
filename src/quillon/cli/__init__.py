"""The `quillon` command."""
