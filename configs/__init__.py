"""The frozen configuration schema and the recipes."""
