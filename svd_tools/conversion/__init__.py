"""The parts of convert.py, convert_lora.py and merge_lora.py: layouts, names, casts and files."""
