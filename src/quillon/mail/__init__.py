"""Values that every other package may use: addresses, replies, messages, outcomes, events. No I/O, no time."""
