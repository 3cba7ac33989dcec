"""The one door that accepts a message: content rules, policy, spool commit, queue, and only then 250."""
