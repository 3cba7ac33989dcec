"""Events to the lines of the manual's logs and of the JSON event log, and lines to files."""
