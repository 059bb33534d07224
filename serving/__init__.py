"""A deployment over HTTP: answers, what was logged of them, and what the log says."""
