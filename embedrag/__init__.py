"""EmbedRAG: fine-tune text-embedding models for retrieval, and prove that they got better."""

__version__ = "0.1.0"
