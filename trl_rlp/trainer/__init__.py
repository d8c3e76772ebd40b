"""The trainers: subclasses of TRL's, in a room for reward models and a room for PPO."""
