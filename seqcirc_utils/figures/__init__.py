"""How findings look: colours, figures, one module for each notebook."""
