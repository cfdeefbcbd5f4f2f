"""What layers of RecBole's models say of the rows of a batch: the feature points, by family of models.

``features`` says what they are and reads them, ``places`` where they can be, ``table`` finds those of a model.
"""
