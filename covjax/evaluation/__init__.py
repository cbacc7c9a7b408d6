"""From a trained network and a split to results."""
