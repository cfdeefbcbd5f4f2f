"""What is where inside RecBole's models, one module per kind of knowledge.

Whatever is true of a single model or class of RecBole stands here and nowhere else. Nothing is trained or decided.
"""
