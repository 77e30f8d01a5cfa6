"""How a model is spread over the workers of a cell: FSDP2 for everything, expert parallelism for the experts."""
