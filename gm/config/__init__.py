"""YAML files and command lines."""
