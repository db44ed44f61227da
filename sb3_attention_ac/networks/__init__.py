"""Networks: timestep encoding, the transformer over the trajectory, its KV cache, action distributions."""
