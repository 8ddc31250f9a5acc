"""Low dose beside normal dose: made, listed, split by patient, and cut into patches."""
