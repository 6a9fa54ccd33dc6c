"""The optimisation of a batch, by one of three twins: torch, for any policy and device; compiled, for an MLP on a CPU;
captured, torch's steps as one launch each, for a GPU."""
