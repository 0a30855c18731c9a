"""Methods that draw replies and raise their rewards: one loop, told apart by how they estimate advantages."""
