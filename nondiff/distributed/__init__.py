"""What it takes to evaluate on other processes and machines: `nondiff.Ray` puts it together."""
