"""What a user asks for in one call: purify a model, reset its weights, or each step of a defense by hand."""
