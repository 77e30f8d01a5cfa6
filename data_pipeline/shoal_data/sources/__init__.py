"""Where text comes from: what a glob names, in which store and format; its documents, and what is no document."""
