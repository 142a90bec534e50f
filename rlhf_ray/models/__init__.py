"""Policy, critic and reward model: torch, transformers and DeepSpeed; no Ray."""
