"""Scripts that time FedEdit against plain references: `python -m benchmarks.NAME [--json FILE]`."""
