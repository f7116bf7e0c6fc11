from pathlib import Path

PROJECT = Path(__file__).parents[3]
TINY = PROJECT / "checkpoints" / "svd_tiny.safetensors"
