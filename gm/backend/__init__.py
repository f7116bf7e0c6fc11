"""What depends on the machine: the device, its operators, what is compiled for it, and its memory."""
