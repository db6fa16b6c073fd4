"""The build wing: a trained model in, evaluated candidates, the chosen one sealed."""
