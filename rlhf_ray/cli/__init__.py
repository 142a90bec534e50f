"""The command line: parse, check, launch, exit code."""
