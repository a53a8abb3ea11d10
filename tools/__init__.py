"""Scripts that build the packaged emoji and the data of some studies."""
