"""What an image is and what a denoising step computes: specs, schedules, solvers, samples."""
