"""What a rollout is worth: reward sources and how they add up."""
