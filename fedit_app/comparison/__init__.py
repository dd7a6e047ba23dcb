"""`fedit compare` and `fedit sweep`: many runs of one experiment, and what they say together."""
