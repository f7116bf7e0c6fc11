"""Checkpoint files: their formats, their names, and the way of their tensors into networks and back."""
