"""The `nondiff` command."""
