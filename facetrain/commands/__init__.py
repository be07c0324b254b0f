"""The commands of `ft`, a module for each group: parse, call one function of the pipeline, show the result."""
