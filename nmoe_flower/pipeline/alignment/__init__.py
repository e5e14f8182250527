"""The second system: a mixture on the server whose experts are aligned with clients."""
