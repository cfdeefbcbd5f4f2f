"""What single models of RecBole evaluate or open in their constructors, so that no setting from elsewhere gets there.

The list is complete for RecBole 1.2: a test looks for every ``eval``, ``torch.load``, ``np.load`` and ``pickle.load``
in its source. What opens datasets and dataloaders is no matter of single models (``run/foreign_settings.py``).
"""

from __future__ import annotations

# settings that are evaluated as Python, with the values that they are meant to have (KD_DAGFM)
EVALUATED = {"teacher": ("CrossNet", "CIN")}

# settings that name a checkpoint, which is unpickled (NeuMF twice, ConvNCF, RaCT and S3Rec, NAIS, KD_DAGFM)
CHECKPOINTS = ("mf_pretrain_path", "mlp_pretrain_path", "pre_model_path", "pretrain_path", "warm_up")
