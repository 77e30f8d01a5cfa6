"""Work in parts, each done once or not at all: in threads or on Ray, in a folder that is one job's at a time."""
