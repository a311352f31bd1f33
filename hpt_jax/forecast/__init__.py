"""What a run would need on chips that are not here: its step is compiled for them, and read."""
