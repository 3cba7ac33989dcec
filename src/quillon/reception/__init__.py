"""The one way in for a message: content rules, policy, spool commit, queue, and only then 250."""
