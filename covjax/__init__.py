"""covjax: lungs, then COVID-19 infection, on chest X-rays, with a U-Net in JAX."""
