"""The live page of runs: pure views of their records, and a small server on loopback that hands them to a browser."""
