"""Images: sources, transforms, subsets, loading and the assignment of images to training steps."""
