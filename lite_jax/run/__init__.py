"""From a configuration to a finished run: build, train, evaluate, and keep it all."""
