"""A trained NVILA in use: a vLLM plugin, an OpenAI-compatible server job, a page to try it, the flat hub layout."""
