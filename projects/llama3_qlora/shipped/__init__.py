"""The two models that the book ships: what they read, how they are examined."""
