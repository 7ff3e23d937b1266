"""Makes a job from a YAML of LightX2V's trainer."""
