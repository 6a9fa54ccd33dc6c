"""The `distrl` command: one file per subcommand, heavy imports after parsing."""
