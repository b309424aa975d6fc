"""What is known of numbers, pointers and types: sets of values, and how operations change them."""
