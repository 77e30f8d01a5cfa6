"""What tests share: workloads with faults, small corpora and models, runs stepped by hand. No tests."""
