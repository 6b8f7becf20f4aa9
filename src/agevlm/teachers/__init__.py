"""Teachers: (picture, phrases) → masks. Used to make data, never at inference."""
