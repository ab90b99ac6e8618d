"""From a volume and a network to the super-resolved volume."""
