"""Which trial is promoted, on what evidence."""
