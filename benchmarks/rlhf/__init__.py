"""A whole RLHF run, offline, on two cores: text from a grammar, a gold program, and all three stages on them."""
