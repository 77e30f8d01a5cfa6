"""The record of a run: `<storage>/<run_id>/`, written by the controller alone (docs/record.md)."""
