"""The OpenAI API: chat completions, responses, models."""
