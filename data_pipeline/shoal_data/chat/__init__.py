"""Conversations to packed samples for supervised fine-tuning, with loss on answers only."""
