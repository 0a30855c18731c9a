"""An adversary that adapts: families of transforms, attackers with a query budget, and what their successes teach."""
