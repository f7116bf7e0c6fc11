"""What only the bundled model needs: its photographs, rendered clips and training."""
