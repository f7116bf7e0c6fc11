"""The parts of svd_tools/page.py: a Gradio page, and the processes behind it."""
