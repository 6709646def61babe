"""The Gemini API: generateContent, streamGenerateContent (SSE or a JSON array), countTokens, models."""
