"""Hours of mixed traffic, and whether anything grows: what scripts/soak is made of."""
