"""Responses trained by reward: the policy and the reward."""
