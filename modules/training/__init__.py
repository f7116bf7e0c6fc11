"""Training of a video model: its options, stages, data and validation."""
