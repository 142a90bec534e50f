"""A policy as a chatbot: OpenAI's API in front of vLLM, and what people say about its replies."""
