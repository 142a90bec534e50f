"""The Ray actors and Ray Train workers of an online run, and the controller's clients for them."""
