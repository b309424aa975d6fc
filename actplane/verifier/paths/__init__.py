"""What a path through a program knows, where it starts, and when it need not be walked again."""
