"""Reward models: text, network, batches, files, scoring. Which module does what is said at the top of each."""
