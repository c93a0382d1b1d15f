"""One page about what was gained and what was lost, from the files that commands wrote."""
