"""Numbers about a run: text quality, intervals, memory."""
