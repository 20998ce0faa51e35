"""Figures: records in, matplotlib Figures out; nothing is estimated here."""
