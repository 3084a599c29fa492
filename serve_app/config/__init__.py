"""What an operator writes: settings, serve configs and model lists, parsed and checked."""
