"""What raw data is: one folder a kind."""
