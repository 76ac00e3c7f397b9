"""Small programs beside training: make data, look at data."""
