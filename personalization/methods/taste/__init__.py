"""What the model favours and what the user favours, and how the one is set against the other."""
