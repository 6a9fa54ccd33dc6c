"""Arrays in, arrays out: advantages, losses, moments and random streams. No environments, no I/O, no logging."""
