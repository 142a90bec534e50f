"""How the policy's weights travel into the rollout engines."""
