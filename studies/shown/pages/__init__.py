"""The start page and the insights as a page, and both as an API."""
