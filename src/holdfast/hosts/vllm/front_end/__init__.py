"""The processes in front of the engine cores: who owns them, who serves requests, and what happens when one is gone."""
