"""Entity extraction: from an image to masks, boxes and scores."""
