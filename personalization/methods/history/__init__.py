"""A user's past items: ranked, grouped, and as something to learn from."""
