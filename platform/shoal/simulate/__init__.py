"""The controller's own decisions on clusters that are not here: simulated workers, clock and failures."""
