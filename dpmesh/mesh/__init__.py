"""The way of a message: checked, charged and sampled before it is sent."""
