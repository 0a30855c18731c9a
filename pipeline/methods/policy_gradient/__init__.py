"""PPO, RLOO and GRPO: one loop, told apart by how they estimate advantages."""
