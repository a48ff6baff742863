"""Small things that every package uses and that know nothing of DefenseKit."""
