"""What a user does in one call: scan or purify a model, reset its weights, or run each step of a defense by hand."""
