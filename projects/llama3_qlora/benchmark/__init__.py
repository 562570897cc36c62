"""This model beside transformers, LitGPT and llama.cpp."""
