"""Proof by killing: runs whose processes are killed, in every phase, and what must be true of them at the end."""
