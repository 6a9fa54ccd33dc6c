"""Where a run's parts run: in this process, or on Ray."""
