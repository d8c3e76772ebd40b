"""A stand-in for vLLM. Its folder is put on the path, so that `import vllm` finds it."""
