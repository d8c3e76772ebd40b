"""The steps of Algorithm 1 as functions: each reads folders, writes its result to a folder and returns metrics."""
