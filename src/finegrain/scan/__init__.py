"""What came off the scanner, and what is given back to it."""
