"""Training clips out of photographs: the pictures, their depth, the camera and the renderer."""
