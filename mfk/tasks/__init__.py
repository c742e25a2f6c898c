"""Floor 3: training problems, each of which binds networks, losses and data into a Task."""
