"""What a run does about what happens to it: pure functions of (state, event), and the values they work on."""
