"""Published weights: cards, the hub, renaming in both directions, strict loading and saving."""
