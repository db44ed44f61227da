"""Self-supervised losses: masked prediction, next-step prediction, and the recent trajectories they draw from."""
