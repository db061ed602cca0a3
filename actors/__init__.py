"""Where rows are worked on: stateful plain classes, each importable without Ray."""
