"""Which message is tried when, from which queue, over how many connections. Pure: `now` comes in."""
