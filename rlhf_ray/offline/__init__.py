"""Training on fixed data: TRL's trainers inside Ray Train worker groups."""
