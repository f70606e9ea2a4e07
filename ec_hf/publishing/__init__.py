"""Cards and the Hub, and what is told of a request."""
