"""What a defense computes, and nothing of where it runs: statistics, scores, selections, purified weights."""
