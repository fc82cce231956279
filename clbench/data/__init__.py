"""Data sources, the Store that holds decoded images, and on-device augmentation."""
