"""Pictures of the mechanics: each file computes its numbers, by the code that trains, and draws them."""
