"""What the platform, the workloads and the data pipeline agree on. It imports none of them."""
