"""Model folders read safely, aligned, merged, written, and asked."""
