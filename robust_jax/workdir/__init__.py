"""What a run leaves in its folder: its config, its checkpoints, and how they are found again."""
