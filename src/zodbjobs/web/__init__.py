"""The door for browsers: feeds over HTTP, and what happens to them as server-sent events."""
