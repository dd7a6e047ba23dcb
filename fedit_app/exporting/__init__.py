"""A node's edited model in forms that other software reads."""
