"""How the worldlet's weights were trained and measured. Commands never import this package."""
