"""Published detectors of texts that carry a trigger."""
