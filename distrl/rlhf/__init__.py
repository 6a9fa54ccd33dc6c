"""RLHF: the same trainer on tokens. State: prompt and tokens so far; action: the next token; reward: see `experience`."""
