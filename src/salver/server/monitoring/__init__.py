"""What the server knows about itself: metrics and logs."""
