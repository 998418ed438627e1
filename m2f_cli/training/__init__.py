"""From images to a model that works: one visible loop, and what it needs."""
