"""Policy-gradient methods. They share one loop and differ in how they estimate advantages."""
