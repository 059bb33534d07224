"""What the `chamtune` command can do, one file a group: parse, call one function, print."""
