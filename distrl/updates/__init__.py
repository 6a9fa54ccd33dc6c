"""The optimisation of a batch, by one of two twins: torch, for any policy and device, or compiled, for an MLP on a CPU."""
