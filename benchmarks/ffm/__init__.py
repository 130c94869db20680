"""The stages of FFM against centralised, local and zero-shot arms, and four ways to merge adapters."""
