"""The critic of responses: what judges said, the model, the gate."""
