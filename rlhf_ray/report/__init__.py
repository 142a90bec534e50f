"""What a person sees of a run: live progress in the terminal, and the report page."""
