"""The room of scoring: what pictures show, how they look beside others, and how sure that is."""
