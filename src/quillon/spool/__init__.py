"""The durable spool: nothing is acknowledged before it is here and synced."""
