"""What hostile clients say: makers of inputs that are nearly right, and ways to spoil an input that is."""
