"""What is in these images, and which study would suit them? Looked at and proposed; nothing is trained."""
