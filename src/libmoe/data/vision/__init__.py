"""Images with conversations about them: what vision-language models train on and are asked."""
