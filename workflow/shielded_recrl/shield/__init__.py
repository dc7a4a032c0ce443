"""Read-out, bases, the constraint on an adapter, and drift."""
