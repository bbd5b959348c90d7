"""Networks with attention: the attention modules, their placement, and the backbones."""
