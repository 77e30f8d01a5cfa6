"""A run on one screen: what its record says (`view`), a map of its workers (`grid`), and both as lines (`frame`)."""
