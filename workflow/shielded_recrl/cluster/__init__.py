"""The machines that a study runs on: are they fit for it, and how its work moves between them."""
