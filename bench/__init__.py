"""The harness: contracts, oracle, runner, records, command line."""
