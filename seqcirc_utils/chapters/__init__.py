"""What each chapter finds: its measurement, and the findings that it keeps."""
