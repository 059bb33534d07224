"""Hidden states moved along a user's direction."""
