"""How the model is trained: schedules, optimizer, balancing. Every schedule is a pure function of tokens."""
