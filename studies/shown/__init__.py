"""What a user sees: terminal, logs, pages."""
