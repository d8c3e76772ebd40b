"""The trainers, which are subclasses of TRL's trainers: one for reward models and one for PPO."""
