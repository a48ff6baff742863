"""Many runs as one: planned over a matrix, run with every stage made once, never lost."""
