"""Model folders: safe reading, alignment, merging, writing and inference."""
