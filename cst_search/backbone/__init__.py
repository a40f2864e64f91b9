"""The frozen ResNet, and layers that keep fewer activations."""
