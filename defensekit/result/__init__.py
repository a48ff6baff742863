"""What one run found, for machines and for people."""
