"""Ports around the ports of a run: the loop talks to them without knowing."""
