"""Every picture: charts and sheets of images, from plain values. Nothing here imports anything of ours from elsewhere,
or computes a result."""
