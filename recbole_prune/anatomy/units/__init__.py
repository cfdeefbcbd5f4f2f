"""Units of RecBole's models that can be removed whole: the groups of slices that go together, by family of models.

``groups`` says what a group is, ``blocks`` builds those of common parts, ``table`` finds those of a model.
"""
