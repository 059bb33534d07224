"""Data, a model and a number of minutes: arms are raced, the best is promoted, and a page says what was tried."""
