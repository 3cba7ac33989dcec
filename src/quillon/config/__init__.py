"""The `ecelerity.conf` language: text to stanzas, stanzas to a checked scope tree, the tree to frozen settings."""
