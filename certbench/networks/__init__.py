"""What a module computes, read once: traces, linear maps, ReLU networks."""
