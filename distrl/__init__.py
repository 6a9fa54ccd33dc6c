"""High-throughput distributed RL: Ray rollout workers, Numba GAE, PPO, and the ladder that leads to it."""
