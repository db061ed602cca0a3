"""When and from where nightmill runs: the command line and the jobs behind it."""
