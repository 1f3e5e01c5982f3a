"""What runs inside worker processes. Nothing here imports the rest of the package."""
