"""Asks a finished study what a user is recommended, and why: in a terminal, as JSON, as pages."""
