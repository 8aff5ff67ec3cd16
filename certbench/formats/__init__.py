"""Ways in for a user's model."""
