"""What each chapter says to try, answered from what the chapter found."""
