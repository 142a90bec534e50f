"""Prompts and preferences from files to rows, and rollouts to batches."""
