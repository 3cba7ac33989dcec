"""Evidence: a log of what was demanded, proven and done for each message, which cannot be changed unseen."""
