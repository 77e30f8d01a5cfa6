"""Reading a finished corpus: its manifest, its stores, and which sample stands at which position."""
