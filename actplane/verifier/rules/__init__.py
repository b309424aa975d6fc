"""What each instruction claims, and what it does to a state."""
