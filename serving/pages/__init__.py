"""What servers logged as a page and an API, beside the pages of the studies."""
