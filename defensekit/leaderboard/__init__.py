"""Leaderboards: frozen tracks, rows that are recipes, and pages made of them."""
