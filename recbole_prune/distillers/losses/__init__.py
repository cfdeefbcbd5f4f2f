"""The losses of the methods, and what weighs them: functions of tensors that know no teacher, student or setting."""
