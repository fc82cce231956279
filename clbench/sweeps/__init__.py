"""Many runs of a sweep: which may train together, and training them in the fastest way."""
